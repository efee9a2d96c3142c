package chaos

import (
	"fmt"
	"slices"
	"strconv"
)

// Ports of the nodes; every namespace has them to itself.
const (
	kafkaPort = 9092
	nodePort  = 9093
	httpPort  = 9644
	mqttPort  = 1883
	edgePort  = 8080
)

// hub is the member that holds the bridge; the others count from 1.
const hub = 0

// command is a program with its arguments.
type command []string

// network knows the names and addresses of one run. It only makes commands and runs none, so that they can be looked at.
type network struct {
	id      string // unique on this machine, at most 5 characters: interface names are short
	subnet  int    // 10.subnet.0.0/24
	members int
}

func (n network) namespace(member int) string {
	return namespacePrefix + n.id + "-" + strconv.Itoa(member)
}
func (n network) address(member int) string { return fmt.Sprintf("10.%d.0.%d", n.subnet, 10+member) }
func (n network) host() string              { return fmt.Sprintf("10.%d.0.1", n.subnet) }
func (n network) link() string              { return linkPrefix + n.id }

// namespacePrefix and linkPrefix mark what is ours on the machine.
const (
	namespacePrefix = "sluice-chaos-"
	linkPrefix      = "slch"
)

// inside runs a command in a member's namespace.
func (n network) inside(member int, c ...string) command {
	return append(command{"ip", "netns", "exec", n.namespace(member)}, c...)
}

func (n network) ip(member int, args ...string) command {
	return append(command{"ip", "-n", n.namespace(member)}, args...)
}

// up makes the namespaces: a bridge in the hub's, a veth pair from there to every member, and one to the namespace of the run itself. The bridge
// has a namespace of its own so that no firewall of the machine sees what goes over it.
func (n network) up() []command {
	out := []command{
		{"ip", "netns", "add", n.namespace(hub)},
		n.ip(hub, "link", "set", "lo", "up"),
		n.ip(hub, "link", "add", "bridge0", "type", "bridge"),
		n.ip(hub, "link", "set", "bridge0", "up"),
		{"ip", "link", "add", n.link(), "type", "veth", "peer", "name", "host", "netns", n.namespace(hub)},
		n.ip(hub, "link", "set", "host", "master", "bridge0", "up"),
		{"ip", "address", "add", n.host() + "/24", "dev", n.link()},
		{"ip", "link", "set", n.link(), "up"},
	}
	for m := 1; m <= n.members; m++ {
		port := "member" + strconv.Itoa(m)
		out = append(out,
			command{"ip", "netns", "add", n.namespace(m)},
			n.ip(m, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", n.namespace(hub)),
			n.ip(hub, "link", "set", port, "master", "bridge0", "up"),
			n.ip(m, "address", "add", n.address(m)+"/24", "dev", "eth0"),
			n.ip(m, "link", "set", "eth0", "up"),
			n.ip(m, "link", "set", "lo", "up"))
	}
	return out
}

// down removes everything that up made: the links go with their namespaces.
func (n network) down() []command {
	out := []command{{"ip", "link", "delete", n.link()}}
	for m := n.members; m >= hub; m-- {
		out = append(out, command{"ip", "netns", "delete", n.namespace(m)})
	}
	return out
}

// change is something done to the network that can be undone.
type change struct{ do, undo command }

func undoAll(changes []change) []command {
	var out []command
	for _, c := range slices.Backward(changes) {
		out = append(out, c.undo)
	}
	return out
}

// rule is an iptables rule in a member's namespace, put before what is there. -w waits for whoever holds the table's lock.
func (n network) rule(member int, table, chain string, spec ...string) change {
	at := func(op string) command {
		return append(n.inside(member, "iptables", "-w", "5", "-t", table, op, chain), spec...)
	}
	return change{do: at("-I"), undo: at("-D")}
}

// cut drops what one member sends to another, at the receiver. The other direction stays.
func (n network) cut(from, to int) change {
	return n.rule(to, "filter", "INPUT", "-s", n.address(from), "-j", "DROP")
}

// cutBoth cuts a link in both directions.
func (n network) cutBoth(a, b int) []change { return []change{n.cut(a, b), n.cut(b, a)} }

// isolate cuts a member from everybody, clients too.
func (n network) isolate(member int) []change {
	return []change{
		n.rule(member, "filter", "INPUT", "!", "-i", "lo", "-j", "DROP"),
		n.rule(member, "filter", "OUTPUT", "!", "-o", "lo", "-j", "DROP"),
	}
}

// isolateFromNodes cuts a member from all nodes, but not from clients.
func (n network) isolateFromNodes(member, nodes int) (out []change) {
	for other := 1; other <= nodes; other++ {
		if other != member {
			out = append(out, n.cutBoth(member, other)...)
		}
	}
	return out
}

// lossy drops a part of what a member sends and receives.
func (n network) lossy(member int, percent int) []change {
	loss := []string{"-m", "statistic", "--mode", "random", "--probability", fmt.Sprintf("%.2f", float64(percent)/100), "-j", "DROP"}
	return []change{
		n.rule(member, "filter", "INPUT", append([]string{"-i", "eth0"}, loss...)...),
		n.rule(member, "filter", "OUTPUT", append([]string{"-o", "eth0"}, loss...)...),
	}
}

// narrow bounds what a member may send, in kbit/s. The queue holds what takes 400 ms to send.
func (n network) narrow(member int, kbit int) change {
	tc := func(op string, args ...string) command {
		return n.inside(member, append([]string{"tc", "qdisc", op, "dev", "eth0", "root"}, args...)...)
	}
	return change{do: tc("add", "tbf", "rate", fmt.Sprintf("%dkbit", kbit), "burst", "32kbit", "latency", "400ms"), undo: tc("del")}
}

// divert sends the connections that a member opens to another's port to a proxy on the host. Connections that are already open are reset (but
// not their resets), or they would go on beside the proxy.
func (n network) divert(from, to, port, proxy int) []change {
	target := []string{"-d", n.address(to), "-p", "tcp", "--dport", strconv.Itoa(port)}
	return []change{
		n.rule(from, "nat", "OUTPUT", append(slices.Clone(target), "-j", "DNAT", "--to-destination", fmt.Sprintf("%s:%d", n.host(), proxy))...),
		n.rule(from, "filter", "OUTPUT", append(slices.Clone(target), "!", "--tcp-flags", "RST", "RST", "-j", "REJECT", "--reject-with", "tcp-reset")...),
	}
}
