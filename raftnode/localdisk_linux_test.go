package raftnode

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// pretendRemote makes the file system of dir count as one over the network, for the length of the test.
func pretendRemote(t *testing.T, dir string) {
	t.Helper()
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		t.Fatal(err)
	}
	if err := localDisk(dir); err != nil {
		t.Fatalf("the tests run over the network: %v", err)
	}
	remoteFileSystems[uint32(stat.Type)] = "a pretended NFS"
	t.Cleanup(func() { delete(remoteFileSystems, uint32(stat.Type)) })
}

func TestRecoveryIsRefusedOnANetworkFileSystem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDiskCluster(t, 2)
		c.strike(5)
		pretendRemote(t, c.server(1).dir)
		c.server(1).kill()
		time.Sleep(time.Minute)
		if why := c.server(2).node.Alone(); !strings.Contains(why, "a free lock proves nothing") {
			t.Errorf("says %q", why)
		}
		c.server(2).kill()
		if _, err := writeIntent(c.server(2).dir, false); err != nil {
			t.Fatal(err)
		}
		c.reopen(2)
		if said := c.disks[1].logs.String(); !strings.Contains(said, "recovery discarded") {
			t.Errorf("said %q", said)
		}
	})
}
