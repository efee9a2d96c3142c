package chaos

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var lab = network{id: "abc", subnet: 80, members: 2}

func text(commands []command) string {
	var out strings.Builder
	for _, c := range commands {
		out.WriteString(strings.Join(c, " ") + "\n")
	}
	return out.String()
}

func TestNetworkUpAndDown(t *testing.T) {
	const up = `ip netns add sluice-chaos-abc-0
ip -n sluice-chaos-abc-0 link set lo up
ip -n sluice-chaos-abc-0 link add bridge0 type bridge
ip -n sluice-chaos-abc-0 link set bridge0 up
ip link add slchabc type veth peer name host netns sluice-chaos-abc-0
ip -n sluice-chaos-abc-0 link set host master bridge0 up
ip address add 10.80.0.1/24 dev slchabc
ip link set slchabc up
ip netns add sluice-chaos-abc-1
ip -n sluice-chaos-abc-1 link add eth0 type veth peer name member1 netns sluice-chaos-abc-0
ip -n sluice-chaos-abc-0 link set member1 master bridge0 up
ip -n sluice-chaos-abc-1 address add 10.80.0.11/24 dev eth0
ip -n sluice-chaos-abc-1 link set eth0 up
ip -n sluice-chaos-abc-1 link set lo up
`
	if got := text(lab.up()); !strings.HasPrefix(got, up) || strings.Count(got, "\n") != 8+2*6 {
		t.Errorf("up:\n%s\nwant it to begin with\n%s", got, up)
	}
	const down = `ip link delete slchabc
ip netns delete sluice-chaos-abc-2
ip netns delete sluice-chaos-abc-1
ip netns delete sluice-chaos-abc-0
`
	if diff := cmp.Diff(down, text(lab.down())); diff != "" {
		t.Error(diff)
	}
}

// The kernel takes names of interfaces up to 15 bytes.
func TestInterfaceNamesFit(t *testing.T) {
	n := network{id: "zzzzz", members: 9}
	if name := n.link(); len(name) > 15 {
		t.Errorf("%s has %d bytes", name, len(name))
	}
}

func did(changes []change) (out []command) {
	for _, c := range changes {
		out = append(out, c.do)
	}
	return out
}

func TestNetworkFaults(t *testing.T) {
	const in1, in2 = "ip netns exec sluice-chaos-abc-1 ", "ip netns exec sluice-chaos-abc-2 "
	for name, c := range map[string]struct {
		changes  []change
		do, undo string
	}{
		"cut one way": {
			[]change{lab.cut(1, 2)},
			in2 + "iptables -w 5 -t filter -I INPUT -s 10.80.0.11 -j DROP\n",
			in2 + "iptables -w 5 -t filter -D INPUT -s 10.80.0.11 -j DROP\n",
		},
		"cut": {
			lab.cutBoth(1, 2),
			in2 + "iptables -w 5 -t filter -I INPUT -s 10.80.0.11 -j DROP\n" + in1 + "iptables -w 5 -t filter -I INPUT -s 10.80.0.12 -j DROP\n",
			in1 + "iptables -w 5 -t filter -D INPUT -s 10.80.0.12 -j DROP\n" + in2 + "iptables -w 5 -t filter -D INPUT -s 10.80.0.11 -j DROP\n",
		},
		"isolate": {
			lab.isolate(1),
			in1 + "iptables -w 5 -t filter -I INPUT ! -i lo -j DROP\n" + in1 + "iptables -w 5 -t filter -I OUTPUT ! -o lo -j DROP\n",
			in1 + "iptables -w 5 -t filter -D OUTPUT ! -o lo -j DROP\n" + in1 + "iptables -w 5 -t filter -D INPUT ! -i lo -j DROP\n",
		},
		"lossy": {
			lab.lossy(1, 7),
			in1 + "iptables -w 5 -t filter -I INPUT -i eth0 -m statistic --mode random --probability 0.07 -j DROP\n" +
				in1 + "iptables -w 5 -t filter -I OUTPUT -o eth0 -m statistic --mode random --probability 0.07 -j DROP\n",
			in1 + "iptables -w 5 -t filter -D OUTPUT -o eth0 -m statistic --mode random --probability 0.07 -j DROP\n" +
				in1 + "iptables -w 5 -t filter -D INPUT -i eth0 -m statistic --mode random --probability 0.07 -j DROP\n",
		},
		"narrow": {
			[]change{lab.narrow(2, 512)},
			in2 + "tc qdisc add dev eth0 root tbf rate 512kbit burst 32kbit latency 400ms\n",
			in2 + "tc qdisc del dev eth0 root\n",
		},
		"divert": {
			lab.divert(1, 2, 9093, 4000),
			in1 + "iptables -w 5 -t nat -I OUTPUT -d 10.80.0.12 -p tcp --dport 9093 -j DNAT --to-destination 10.80.0.1:4000\n" +
				in1 + "iptables -w 5 -t filter -I OUTPUT -d 10.80.0.12 -p tcp --dport 9093 ! --tcp-flags RST RST -j REJECT --reject-with tcp-reset\n",
			in1 + "iptables -w 5 -t filter -D OUTPUT -d 10.80.0.12 -p tcp --dport 9093 ! --tcp-flags RST RST -j REJECT --reject-with tcp-reset\n" +
				in1 + "iptables -w 5 -t nat -D OUTPUT -d 10.80.0.12 -p tcp --dport 9093 -j DNAT --to-destination 10.80.0.1:4000\n",
		},
	} {
		if diff := cmp.Diff(c.do, text(did(c.changes))); diff != "" {
			t.Errorf("%s, do:\n%s", name, diff)
		}
		if diff := cmp.Diff(c.undo, text(undoAll(c.changes))); diff != "" {
			t.Errorf("%s, undo:\n%s", name, diff)
		}
	}
}

func TestIsolateFromNodesLeavesClients(t *testing.T) {
	all := text(did(network{id: "x", subnet: 80, members: 4}.isolateFromNodes(2, 3)))
	for _, who := range []string{"10.80.0.11", "10.80.0.12", "10.80.0.13"} {
		if !strings.Contains(all, who+" ") {
			t.Errorf("nothing from %s is dropped:\n%s", who, all)
		}
	}
	if strings.Contains(all, "10.80.0.14") || strings.Contains(all, "10.80.0.1 ") || strings.Count(all, "\n") != 4 {
		t.Errorf("more than the links between nodes is cut:\n%s", all)
	}
}
