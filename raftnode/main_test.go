package raftnode

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// bbolt leaves this one behind when it panics over a damaged file, as some tests make it do.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("go.etcd.io/bbolt.(*DB).freepages.func2"))
}
