package raftnode

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// localDisk refuses a directory on a file system whose locks prove nothing.
func localDisk(dir string) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return fmt.Errorf("statfs %s: %w", dir, err)
	}
	if stat.Flags&unix.MNT_LOCAL == 0 {
		return fmt.Errorf("%s is on %s, where a free lock proves nothing", dir, unix.ByteSliceToString(stat.Fstypename[:]))
	}
	return nil
}
