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
	bare := func(searcher Searcher, least int) *unitSearcher {
		s := searcher.(*unitSearcher)
		s.other, s.shape.least = newGeneric(), least
		return s
	}
	kernels := make(map[string]*unitSearcher)

	kernels["avx512"] = bare(newAVX512(), 1)
	k := kernels["avx512"].kernel.(*avx512)
	program := emulate(t, "avx512_amd64.s", "avx512Search", k.b)
	k.search = func(b *avx512Block, groups, steps int) int { return program.run(bytesOf(b), groups, steps) }

	kernels["avx2"] = bare(newAVX2(), 0)
	v := kernels["avx2"].kernel.(*avx2)
	program1, program2 := emulate(t, "avx2_amd64.s", "avx2Search1", v.b), emulate(t, "avx2_amd64.s", "avx2Search2", v.b)
	kernels["avx2"].kernel = &emulatedKernel{v, func(digits int) {
		program := program1
		if digits > 8 {
			program = program2
		}
		v.search = func(b *avx2Block, groups int) { program.run(bytesOf(b), groups) }
	}}

	kernels["shani"] = bare(newSHANI(), 0)
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

func TestEmulatedKernelsAgreeWithTheReference(t *testing.T) {
	for name, searcher := range emulatedKernels(t) {
		t.Run(name, func(t *testing.T) {
			for _, timestamp := range []uint64{1_790_000_000_000, 7, math.MaxUint64} {
				job := NewJob(pow.Work{Previous: somePrevious, Timestamp: timestamp})
				for _, r := range []pow.Range{
					{First: 123_456_789, Last: 123_457_111},
					{First: 999_999_900, Last: 1_000_000_300},
				} {
					got := searchAll(t, searcher, job, r, 1<<30, 400)
					if want := referenceHits(job.Work, r, 1<<30); !slices.Equal(got, want) {
						t.Fatalf("timestamp %d, range %s:\ngot  %v\nwant %v", timestamp, r, got, want)
					}
				}
			}
		})
	}
}
