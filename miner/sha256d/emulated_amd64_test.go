//go:build !purego

package sha256d

import (
	"crypto/sha256"
	"math"
	"slices"
	"testing"

	"raftmine/fsm/pow"
)

// emulatedKernel puts the emulator into a kernel that chooses its function when it is prepared.
type emulatedKernel struct {
	unitKernel
	install func(digits int)
}

func (k *emulatedKernel) prepare(job *Job, digits int) int {
	unit := k.unitKernel.prepare(job, digits)
	k.install(digits)
	return unit
}

// emulatedKernels returns every kernel of this build, run by the emulator, with no other one behind it but generic.
func emulatedKernels(t testing.TB) map[string]*unitSearcher {
	bare := func(searcher Searcher) *unitSearcher {
		if s := alone(searcher); s != nil {
			return s.(*unitSearcher)
		}
		return searcher.(*unitSearcher)
	}
	kernels := make(map[string]*unitSearcher)

	kernels["avx512"] = bare(newAVX512())
	k := kernels["avx512"].kernel.(*avx512)
	program := emulate(t, "avx512_amd64.s", "avx512Search", k.b)
	k.search = func(b *avx512Block, groups, steps int) int { return program.run(bytesOf(b), groups, steps) }

	kernels["hybrid"] = bare(newHybrid())
	h := kernels["hybrid"].kernel.(*hybrid)
	program3 := emulate(t, "hybrid_amd64.s", "hybridSearch", h.b)
	h.search = func(b *hybridBlock, groups, steps, batches int) int {
		return program3.run(bytesOf(b), groups, steps, batches)
	}

	kernels["avx2"] = bare(newAVX2())
	v := kernels["avx2"].kernel.(*avx2)
	program1, program2 := emulate(t, "avx2_amd64.s", "avx2Search1", v.b), emulate(t, "avx2_amd64.s", "avx2Search2", v.b)
	kernels["avx2"].kernel = &emulatedKernel{v, func(digits int) {
		program := program1
		if digits > 8 {
			program = program2
		}
		v.search = func(b *avx2Block, groups int) { program.run(bytesOf(b), groups) }
	}}

	kernels["shani"] = bare(newSHANI())
	n := kernels["shani"].kernel.(*shaniWide)
	wide := emulate(t, "shani_amd64.s", "shaniSearchWide", n.b)
	n.search = func(b *shaniWideBlock, groups, steps int) int { return wide.run(bytesOf(b), groups, steps) }

	kernels["shani, by decades"] = bare(newSHANIDecades())
	d := kernels["shani, by decades"].kernel.(*shani)
	decades := emulate(t, "shani_amd64.s", "shaniSearch", d.b)
	d.search = func(b *shaniBlock, count int) int { return decades.run(bytesOf(b), count) }
	return kernels
}

// Half of all nonces are hits here, so that one wrong word or place shows, one of them exactly at the threshold: each lane,
// several groups in a run, groups that are not full, both kinds of units, and short and long lengths of the message's tail.
func TestEmulatedKernelsAgreeWithTheReference(t *testing.T) {
	kernels := emulatedKernels(t)
	for i, test := range []struct {
		timestamp    uint64
		first, count uint64
	}{
		{1_790_000_000_000, 123_456_789, 323},
		{math.MaxUint64, 399_999_981, 45},
		{7, 999_999_900, 100},
		{12_345, 1_234_567_890, 1_220},
		{99, 9_999_999_850, 150},
	} {
		job := NewJob(pow.Work{Previous: somePrevious, Timestamp: test.timestamp})
		r := pow.Range{First: test.first, Last: test.first + test.count - 1}
		threshold := middleWord(job.Work, r)
		want := referenceHits(job.Work, r, threshold)
		for name, searcher := range kernels {
			if got := searchAll(t, searcher, job, r, threshold, 2000); !slices.Equal(got, want) {
				t.Errorf("%s, case %d, range %s:\ngot  %v\nwant %v", name, i, r, got, want)
			}
			if searcher.unit == 0 {
				t.Errorf("%s, case %d: the kernel was not used", name, i)
			}
		}
	}
}

// Timestamps of 1 to 20 digits, at the changes to nonces of 9 and of 10 digits and between them.
func TestEmulatedKernelsAtEveryMessageLength(t *testing.T) {
	kernels := emulatedKernels(t)
	check := func(timestamp, first, last uint64) {
		job := NewJob(pow.Work{Previous: somePrevious, Timestamp: timestamp})
		r := pow.Range{First: first, Last: last}
		threshold := middleWord(job.Work, r)
		want := referenceHits(job.Work, r, threshold)
		for name, searcher := range kernels {
			if got := searchAll(t, searcher, job, r, threshold, 64); !slices.Equal(got, want) {
				t.Errorf("%s, timestamp %d, range %s:\ngot  %v\nwant %v", name, timestamp, r, got, want)
			}
		}
	}
	for timestamp, i := uint64(1), uint64(0); i < pow.MaxDecimalDigits; timestamp, i = 10*timestamp+3, i+1 {
		check(timestamp, 314_159_260+i, 314_159_299)
	}
	check(1_790_000_000_000, 99_999_991, 100_000_017)
	check(1_790_000_000_000, 999_999_985, 1_000_000_103)
}

// The hybrid kernel's first turn makes rubbish: it must not matter what memory held before.
func TestEmulatedKernelsForgetTheirLastRun(t *testing.T) {
	job := NewJob(pow.Work{Previous: somePrevious, Timestamp: 1_790_000_000_000})
	r := pow.Range{First: 300_000_000, Last: 300_000_119}
	for name, searcher := range emulatedKernels(t) {
		for range 2 {
			searchAll(t, searcher, job, pow.Range{First: 200_000_000, Last: 200_000_029}, math.MaxUint32, 100)
			if got := searchAll(t, searcher, job, r, 0, 100); len(got) != 0 {
				t.Errorf("%s found %v, want nothing at or below 0", name, got)
			}
		}
	}
}

// FuzzEmulatedSearch is FuzzSearch for the kernels that this machine may not have. Nonces of 9 digits, because those of 10
// come in units of 100: an emulator that is also being fuzzed does few of them a second.
func FuzzEmulatedSearch(f *testing.F) {
	f.Add([]byte("previous"), uint64(1_790_000_000_000), uint64(123_456_789), uint8(11), uint32(1<<28))
	f.Add([]byte(""), uint64(0), uint64(899_999_990), uint8(20), uint32(math.MaxUint32))
	f.Add([]byte{0xff}, uint64(math.MaxUint64), uint64(4_294_967_290), uint8(31), uint32(1<<31))
	kernels := emulatedKernels(f)
	f.Fuzz(func(t *testing.T, previous []byte, timestamp, first uint64, length uint8, threshold uint32) {
		const lowest, limit = 100_000_000, 1_000_000_000
		first = lowest + first%(limit-lowest)
		r := pow.Range{First: first, Last: min(first+uint64(length)%32, limit-1)}
		job := NewJob(pow.Work{Previous: sha256.Sum256(previous), Timestamp: timestamp})
		want := referenceHits(job.Work, r, threshold)
		for name, searcher := range kernels {
			if got := searchAll(t, searcher, job, r, threshold, 32); !slices.Equal(got, want) {
				t.Fatalf("%s: timestamp %d, range %s, threshold %#x:\ngot  %v\nwant %v", name, timestamp, r, threshold, got, want)
			}
		}
	})
}
