package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// proxies stand between processes: each server advertises its proxy, so everything that is sent to it passes there. Who
// dialled a proxy the kernel says, so that each direction between two processes can be cut or delayed by itself.
//
// What is cut is held, as TCP holds it over a network: it arrives when the cut is over, unless somebody gave up before. Two
// things are not like a network: a dial succeeds although nothing passes, and a proxy's port never refuses.
type proxies struct {
	t      *testing.T
	mu     sync.Mutex
	change *sync.Cond // of cuts, and closed
	cuts   map[link]bool
	delays map[link]time.Duration
	closed bool
	done   chan struct{}
	conns  map[net.Conn]struct{}
	lists  []net.Listener
	work   sync.WaitGroup
}

// link is a direction between two processes, by name.
type link struct{ from, to string }

func newProxies(t *testing.T) *proxies {
	p := &proxies{t: t, cuts: make(map[link]bool), delays: make(map[link]time.Duration), done: make(chan struct{}), conns: make(map[net.Conn]struct{})}
	p.change = sync.NewCond(&p.mu)
	t.Cleanup(p.close)
	return p
}

func (p *proxies) close() {
	p.mu.Lock()
	p.closed = true
	close(p.done)
	for conn := range p.conns {
		conn.Close()
	}
	p.change.Broadcast()
	p.mu.Unlock()
	for _, l := range p.lists {
		l.Close()
	}
	p.work.Wait()
}

// cut cuts or heals one direction. Nothing that is sent after it returned arrives until it is healed.
func (p *proxies) cut(from, to string, cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cuts[link{from, to}] = cut
	p.change.Broadcast()
}

// delay makes one direction slow, from what is sent next on.
func (p *proxies) delay(from, to string, delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delays[link{from, to}] = delay
}

// listen makes the proxy of a process, which listens at target.
func (p *proxies) listen(name, target string) (address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	p.lists = append(p.lists, l)
	p.work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p.work.Go(func() { p.serve(conn.(*net.TCPConn), name, target) })
		}
	})
	return l.Addr().String()
}

// serve connects a process that dialled with the one that it means. Where nobody listens the connection is reset.
func (p *proxies) serve(near *net.TCPConn, to, target string) {
	if !p.track(near) {
		return
	}
	defer p.untrack(near)
	from, err := dialler(near)
	if err != nil {
		p.t.Errorf("connection to %s: %v", to, err)
		return
	}
	if from == "" {
		return
	}
	// The handshake of a connection takes a message each way.
	if !p.await(time.Now().Add(p.lag(from, to)+p.lag(to, from))) || !p.pass(from, to) || !p.pass(to, from) {
		return
	}
	conn, err := net.Dial("tcp", target)
	if err != nil {
		_ = near.SetLinger(0)
		return
	}
	far := conn.(*net.TCPConn)
	if !p.track(far) {
		return
	}
	defer p.untrack(far)
	var both sync.WaitGroup
	both.Go(func() { p.carry(far, near, link{from, to}) })
	both.Go(func() { p.carry(near, far, link{to, from}) })
	both.Wait()
}

// parcel is what was read at once, or the end of a stream.
type parcel struct {
	data []byte
	err  error
	due  time.Time
}

// carry carries one direction until it is over. Its end arrives in its turn, as a reset if it was one.
func (p *proxies) carry(dst, src *net.TCPConn, on link) {
	parcels := make(chan parcel, 64)
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(parcels)
		for {
			buffer := make([]byte, 16<<10)
			n, err := src.Read(buffer)
			due := time.Now().Add(p.lag(on.from, on.to))
			for _, what := range []parcel{{data: buffer[:n], due: due}, {err: err, due: due}} {
				if len(what.data) == 0 && what.err == nil {
					continue
				}
				select {
				case parcels <- what:
				case <-p.done:
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	defer reading.Wait()
	for what := range parcels {
		if !p.await(what.due) || !p.pass(on.from, on.to) {
			break
		}
		if what.err != nil {
			if errors.Is(what.err, io.EOF) {
				_ = dst.CloseWrite()
			} else {
				_ = dst.SetLinger(0)
				dst.Close()
			}
			continue // it was the last one
		}
		if _, err := dst.Write(what.data); err != nil {
			_ = src.SetLinger(0)
			src.Close()
			break
		}
	}
	for range parcels { // the reader ends with its connection
	}
}

func (p *proxies) lag(from, to string) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.delays[link{from, to}]
}

// await waits until due; false: the test is over.
func (p *proxies) await(due time.Time) bool {
	left := time.Until(due)
	if left <= 0 {
		return true
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-p.done:
		return false
	}
}

// pass waits until the direction is not cut; false: the test is over.
func (p *proxies) pass(from, to string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.cuts[link{from, to}] && !p.closed {
		p.change.Wait()
	}
	return !p.closed
}

func (p *proxies) track(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		conn.Close()
		return false
	}
	p.conns[conn] = struct{}{}
	return true
}

func (p *proxies) untrack(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, conn)
	conn.Close()
}

// dialler returns the name of the process that holds the other end of a connection: "test" for this one, else as the
// drill names its children; empty: it hung up, or is none of ours.
func dialler(conn *net.TCPConn) (string, error) {
	for range 20 {
		inode, err := inodeOf(conn.RemoteAddr().(*net.TCPAddr), conn.LocalAddr().(*net.TCPAddr))
		if err != nil || inode == 0 {
			return "", err
		}
		lists, _ := filepath.Glob("/proc/self/task/*/children")
		for _, list := range lists {
			data, _ := os.ReadFile(list) // the thread may be gone
			for _, field := range strings.Fields(string(data)) {
				pid, err := strconv.Atoi(field)
				if err != nil || !holds(pid, inode) {
					continue
				}
				// One that was forked and does not run its program yet has no name, and this process's files.
				if name := nameOf(pid); name != "" {
					return name, nil
				}
			}
		}
		if holds(os.Getpid(), inode) {
			return "test", nil
		}
		<-time.After(5 * time.Millisecond) // its process ends, or another's list was read too early
	}
	return "", nil
}

// holds reports whether a socket is open in a process.
func holds(pid int, inode uint32) bool {
	want := fmt.Sprintf("socket:[%d]", inode)
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	folder, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer folder.Close()
	names, _ := folder.Readdirnames(-1)
	for _, name := range names {
		if to, err := os.Readlink(dir + "/" + name); err == nil && to == want {
			return true
		}
	}
	return false
}

// nameOf reads a child's name from its command line.
func nameOf(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	args := strings.Split(string(data), "\x00")
	flag := map[string]string{"server": "--data-dir", "miner": "--name"}[args[min(1, len(args)-1)]]
	if at := slices.Index(args, flag); flag != "" && at > 0 && at+1 < len(args) {
		if flag == "--name" {
			return args[at+1]
		}
		return "server-" + filepath.Base(args[at+1])
	}
	return ""
}

// What inet_diag(7) calls these. Reading /proc/net/tcp takes too long where there are thousands of sockets.
const (
	netlinkSockDiag   = 4
	sockDiagByFamily  = 20
	inetDiagInode     = 68 // in the answer: where the inode is
	inetDiagAnswerLen = 72
)

// inodeOf asks the kernel for the inode of the TCP socket at local that is connected to remote; 0: there is none, or no
// process has it any more.
func inodeOf(local, remote *net.TCPAddr) (uint32, error) {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, netlinkSockDiag)
	if err != nil {
		return 0, err
	}
	defer syscall.Close(fd)
	request := make([]byte, 16+56) // struct nlmsghdr, struct inet_diag_req_v2
	native := binary.NativeEndian
	native.PutUint32(request[0:], uint32(len(request)))
	native.PutUint16(request[4:], sockDiagByFamily)
	native.PutUint16(request[6:], syscall.NLM_F_REQUEST)
	request[16], request[17] = syscall.AF_INET, syscall.IPPROTO_TCP
	native.PutUint32(request[20:], ^uint32(0)) // any state
	binary.BigEndian.PutUint16(request[24:], uint16(local.Port))
	binary.BigEndian.PutUint16(request[26:], uint16(remote.Port))
	copy(request[28:], local.IP.To4())
	copy(request[44:], remote.IP.To4())
	native.PutUint64(request[64:], ^uint64(0)) // no cookie
	if err := syscall.Sendto(fd, request, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return 0, err
	}
	answer := make([]byte, 4096)
	n, _, err := syscall.Recvfrom(fd, answer, 0)
	if err != nil {
		return 0, err
	}
	messages, err := syscall.ParseNetlinkMessage(answer[:n])
	if err != nil || len(messages) != 1 {
		return 0, fmt.Errorf("%d answers of the kernel: %w", len(messages), err)
	}
	switch message := messages[0]; {
	case message.Header.Type == syscall.NLMSG_ERROR && len(message.Data) >= 4:
		if errno := syscall.Errno(-int32(native.Uint32(message.Data))); errno != syscall.ENOENT {
			return 0, fmt.Errorf("ask the kernel for a socket: %w", errno)
		}
		return 0, nil
	case message.Header.Type == sockDiagByFamily && len(message.Data) >= inetDiagAnswerLen:
		return native.Uint32(message.Data[inetDiagInode:]), nil
	}
	return 0, errors.New("the kernel's answer is not about a socket")
}

// TestProxiesHoldWhatIsCut: each direction by itself, and in order; what was held arrives when the cut is over.
func TestProxiesHoldWhatIsCut(t *testing.T) {
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	p := newProxies(t)
	near, err := net.Dial("tcp", p.listen("far", target.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := target.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	send := func(on net.Conn, text string) {
		t.Helper()
		if _, err := on.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	arrives := func(on net.Conn, want string) {
		t.Helper()
		got := make([]byte, len(want))
		_ = on.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.ReadFull(on, got); err != nil || string(got) != want {
			t.Fatalf("read %q, %v; want %q", got, err, want)
		}
	}
	held := func(on net.Conn) {
		t.Helper()
		_ = on.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, err := on.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("read %d bytes of what was cut, %v", n, err)
		}
	}
	p.cut("test", "far", true)
	send(near, "first ")
	send(far, "back")
	arrives(near, "back")
	held(far)
	send(near, "second")
	p.cut("test", "far", false)
	arrives(far, "first second")

	p.cut("far", "test", true)
	send(near, "there")
	arrives(far, "there")
	send(far, "and back")
	held(near)
	p.cut("far", "test", false)
	arrives(near, "and back")

	p.delay("test", "far", 100*time.Millisecond)
	began := time.Now()
	send(near, "late")
	arrives(far, "late")
	if took := time.Since(began); took < 100*time.Millisecond {
		t.Errorf("a message that is delayed by 100ms took %v", took)
	}
	near.Close()
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the end of the stream arrived as %v", err)
	}
}
