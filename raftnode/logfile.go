package raftnode

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"syscall"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// checkLogFile reads the file of the Raft log, without changing it, before it is opened for writing. Then bbolt looks at its
// pages too, but in a goroutine of its own, whose panic over damage ends the process; here it is an error. So is a fault: a
// file that was cut shorter than it says is mapped beyond its end.
func checkLogFile(path string) (err error) {
	defer recoverDamage(path, &err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	db, err := bbolt.Open(path, 0o600, readOnlyBolt())
	if err != nil {
		return unopened(path, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = db.View(func(tx *bbolt.Tx) error {
		if tx.Size() > info.Size() {
			return fmt.Errorf("it is cut off at %d of %d bytes", info.Size(), tx.Size())
		}
		return tx.ForEach(func(name []byte, bucket *bbolt.Bucket) error {
			if bucket == nil {
				return fmt.Errorf("%q is no bucket", name)
			}
			return checkBucket(name, bucket, tx.Size())
		})
	})
	if err != nil {
		return damaged(path, err)
	}
	return nil
}

// checkBucket reads every entry, each in its place: by its key it is found again.
func checkBucket(name []byte, bucket *bbolt.Bucket, size int64) error {
	var before []byte
	cursor := bucket.Cursor()
	for key, value := cursor.First(); key != nil; key, value = cursor.Next() {
		if value == nil || bytes.Compare(before, key) >= 0 || len(bucket.Get(key)) != len(value) {
			return fmt.Errorf("bucket %q: key %x is not where it belongs", name, key)
		}
		if len(value) > 0 {
			_ = bytes.Clone(value[len(value)-1:])
		}
		before = key
	}
	if stats := bucket.Stats(); int64(stats.BranchAlloc)+int64(stats.LeafAlloc) > size {
		return fmt.Errorf("bucket %q has %d bytes of %d", name, stats.BranchAlloc+stats.LeafAlloc, size)
	}
	return nil
}

// errLogInUse: a running process has the log open. It does not need the directory's lock for that.
var errLogInUse = errors.New("in use by another process")

// unopened is the error of a file that bbolt does not open.
func unopened(path string, err error) error {
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("%s is %w", path, errLogInUse)
	case !errors.As(err, new(syscall.Errno)): // not the disk or its permissions, but what the file says
		return damaged(path, err)
	}
	return fmt.Errorf("open %s: %w", path, err)
}
