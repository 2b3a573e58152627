package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// insideVariable says to a test that it runs in the network namespace that it made for itself.
	insideVariable = "TEST_INSIDE_NAMESPACE"
	// namespaceVariable makes a child enter a network namespace before it does anything else.
	namespaceVariable = "TEST_ENTER_NAMESPACE"
)

func init() {
	path := os.Getenv(namespaceVariable)
	if path == "" || os.Getenv(asRaftmine) == "" {
		return
	}
	// A namespace is a thread's: the program begins again on the thread that entered it.
	runtime.LockOSThread()
	err := func() error {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", path, err)
		}
		return errors.Join(os.Unsetenv(namespaceVariable), syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
	}()
	fmt.Fprintln(os.Stderr, "raftmine: network namespace:", err)
	os.Exit(exitFailed)
}

// namespaces is a network of one namespace for each process, all on a bridge in the namespace of the test. It ends with the
// processes in it: nothing has a name outside.
type namespaces struct {
	t     *testing.T
	hosts map[string]host
}

type host struct {
	number int // of its address and its link
	path   string
}

const (
	namespaceNet = "10.77.0."
	namespaceHub = namespaceNet + "254"
	noHost       = 99 // the end of a link address that nobody has
)

func (h host) ip() string      { return fmt.Sprint(namespaceNet, h.number) }
func (h host) inside() string  { return fmt.Sprint("inside", h.number) }  // the end of its link in its namespace
func (h host) outside() string { return fmt.Sprint("outside", h.number) } // the other end, at the bridge
func lladdr(number int) string { return fmt.Sprintf("02:00:00:00:00:%02d", number) }

// newNamespaces makes a namespace for each name, and skips the test where that is not possible.
func newNamespaces(t *testing.T, names ...string) *namespaces {
	t.Helper()
	n := &namespaces{t: t, hosts: make(map[string]host)}
	need := func(args ...string) {
		t.Helper()
		if said, err := ip("", args...); err != nil {
			t.Skipf("network namespaces cannot be connected here: ip %s: %v: %s", strings.Join(args, " "), err, said)
		}
	}
	need("link", "set", "lo", "up")
	need("link", "add", "bridge", "type", "bridge")
	need("address", "add", namespaceHub+"/24", "dev", "bridge")
	need("link", "set", "bridge", "up")
	for i, name := range names {
		holder := exec.Command("cat") // ends with its input, which ends with this process
		holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		input, err := holder.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := holder.Start(); err != nil {
			t.Skipf("no network namespace can be made here: %v", err)
		}
		t.Cleanup(func() {
			input.Close()
			_ = holder.Wait()
		})
		h := host{number: i + 1, path: fmt.Sprintf("/proc/%d/ns/net", holder.Process.Pid)}
		n.hosts[name] = h
		need("link", "add", h.outside(), "type", "veth", "peer", "name", h.inside(), "address", lladdr(h.number), "netns", fmt.Sprint(holder.Process.Pid))
		need("link", "set", h.outside(), "master", "bridge", "up")
		for _, args := range [][]string{{"link", "set", "lo", "up"}, {"address", "add", h.ip() + "/24", "dev", h.inside()}, {"link", "set", h.inside(), "up"}} {
			if said, err := ip(h.path, args...); err != nil {
				t.Skipf("network namespaces cannot be configured here: ip %s: %v: %s", strings.Join(args, " "), err, said)
			}
		}
	}
	return n
}

// ip runs ip(8) in a namespace; "": in this one.
func ip(path string, args ...string) (said string, err error) {
	cmd := exec.Command("ip", args...)
	if path != "" {
		cmd = exec.Command("nsenter", append([]string{"--net=" + path, "ip"}, args...)...)
	}
	output, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(output)), err
}

// must runs ip where it worked before.
func (n *namespaces) must(path string, args ...string) {
	n.t.Helper()
	if said, err := ip(path, args...); err != nil {
		n.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, said)
	}
}

// cut implements network: what one host sends to the other goes to a link address that nobody has. It needs no packet filter.
func (n *namespaces) cut(from, to string, cut bool) {
	n.t.Helper()
	a, b := n.hosts[from], n.hosts[to]
	address := lladdr(b.number)
	if cut {
		address = lladdr(noHost)
	}
	n.must(a.path, "neighbour", "replace", b.ip(), "lladdr", address, "nud", "permanent", "dev", a.inside())
}

// unplug takes a host's link down, or up again. The test cannot reach it meanwhile either.
func (n *namespaces) unplug(name string, down bool) {
	n.t.Helper()
	n.must("", "link", "set", n.hosts[name].outside(), map[bool]string{true: "down", false: "up"}[down])
}

// enterOwnNamespace runs a test again, alone, in a new network namespace, and returns false. There it returns true.
func enterOwnNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideVariable) != "" {
		return true
	}
	if !fullEndToEnd() {
		t.Skip("it takes network namespaces, and time: make e2e runs it")
	}
	for _, tool := range []string{"ip", "nsenter", "cat"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("network namespaces are set up with %s, which is not on this machine", tool)
		}
	}
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	again := exec.CommandContext(t.Context(), executable, "-test.run", "^"+t.Name()+"$", "-test.v", "-test.timeout", "10m")
	again.Env = append(os.Environ(), insideVariable+"=1")
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	if uid := os.Getuid(); uid != 0 { // an ordinary user is root in a user namespace, where that is allowed
		again.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		again.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		again.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	runtime.LockOSThread() // whose end Pdeathsig means
	defer runtime.UnlockOSThread()
	var output strings.Builder
	again.Stdout, again.Stderr = &output, &output
	if err := again.Start(); err != nil {
		t.Skipf("no network namespace can be made here: %v", err)
	}
	err = again.Wait()
	t.Log(output.String())
	switch {
	case err != nil:
		t.Fatalf("in its network namespace: %v", err)
	case strings.Contains(output.String(), "--- SKIP: "+t.Name()):
		t.Skip("skipped in its network namespace: see above")
	case !strings.Contains(output.String(), "--- PASS: "+t.Name()):
		t.Fatal("in its network namespace the test did not run")
	}
	return false
}

// TestPartitionsOfHostsAreSurvived is TestPartitionsAreSurvived with the kernel's network in between: messages are lost, dials
// wait, and nobody holds back anything for later but the sender. Each process has a network of its own.
func TestPartitionsOfHostsAreSurvived(t *testing.T) {
	if !enterOwnNamespace(t) {
		return
	}
	n := newNamespaces(t, "server-1", "server-2", "server-3", "miner-1")
	address := func(id int) string { return n.hosts[serverName(id)].ip() + ":7000" }
	hub, err := net.Listen("tcp", namespaceHub+":0")
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Server{ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	p := startPartitioned(t, partitionHeartbeat, address, address, func(string) string { return "http://" + hub.Addr().String() }, "--insecure")
	web.Handler = p.service
	go func() { served <- web.Serve(hub) }()
	t.Cleanup(func() {
		web.Close()
		<-served
	})
	p.net = n
	p.starting = func(name string) { t.Setenv(namespaceVariable, n.hosts[name].path) }
	p.startAll()
	p.survivePartitions()
	for _, name := range []string{"server-1", "server-2"} {
		p.survive(name+"'s link is down", name, func(down bool) { n.unplug(name, down) }, nil)
	}
	p.finish()
}
