// Package chaos breaks a cluster of real processes in every way it knows, one fault at a time, while clients work, and says whether the cluster
// kept its promises: nothing acknowledged is lost, doubled or reordered, replicas are equal byte for byte, and writes go on within seconds.
//
// Every node runs in a network namespace with an address of its own, behind a bridge in one more namespace, so that links can be cut for it alone.
// A seed determines which faults come, on whom, for how long and with what pauses; what the cluster makes of them is its own. After each fault the
// run waits until all replicas are in sync again, within a bound.
//
// It needs Linux, root, iproute2, iptables and e2fsprogs. What it makes carries the run's id; what a crashed run left behind is removed by the next.
// Like all of loadtest it is a stranger to Sluice: it runs the binaries and speaks Kafka, MQTT and HTTP with them.
package chaos
