package raftnode

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// remoteFileSystems are those whose locks may not reach the other processes, or outlive them: statfs(2). FUSE may be anything.
var remoteFileSystems = map[uint32]string{
	unix.NFS_SUPER_MAGIC:  "NFS",
	unix.SMB_SUPER_MAGIC:  "SMB",
	unix.CIFS_SUPER_MAGIC: "SMB",
	unix.SMB2_SUPER_MAGIC: "SMB",
	unix.AFS_SUPER_MAGIC:  "AFS",
	unix.AFS_FS_MAGIC:     "AFS",
	unix.CODA_SUPER_MAGIC: "Coda",
	unix.CEPH_SUPER_MAGIC: "Ceph",
	unix.V9FS_MAGIC:       "9P",
	unix.FUSE_SUPER_MAGIC: "FUSE",
	unix.NCP_SUPER_MAGIC:  "NCP",
	0x0bd00bd0:            "Lustre",
	0x01161970:            "GFS2",
	0x7461636f:            "OCFS2",
	0x47504653:            "GPFS",
}

// localDisk refuses a directory on a file system whose locks prove nothing.
func localDisk(dir string) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return fmt.Errorf("statfs %s: %w", dir, err)
	}
	if name, remote := remoteFileSystems[uint32(stat.Type)]; remote {
		return fmt.Errorf("%s is on %s, where a free lock proves nothing", dir, name)
	}
	return nil
}
