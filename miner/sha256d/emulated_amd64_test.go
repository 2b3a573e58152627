//go:build !purego

package sha256d

import (
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
	n := kernels["shani"].kernel.(*shani)
	all, hoisted := emulate(t, "shani_amd64.s", "shaniSearchAll", n.b), emulate(t, "shani_amd64.s", "shaniSearchHoisted", n.b)
	kernels["shani"].kernel = &emulatedKernel{n, func(digits int) {
		program := all
		if digits > 8 {
			program = hoisted
		}
		n.search = func(b *shaniBlock, decades int) int { return program.run(bytesOf(b), decades) }
	}}
	return kernels
}

// Half of all nonces are hits here, so that one wrong word or place shows: each lane, several groups in a run, groups
// that are not full, both kinds of units, and short and long lengths of the message's tail.
func TestEmulatedKernelsAgreeWithTheReference(t *testing.T) {
	const threshold = math.MaxUint32 / 2
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
