package sha256d

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strconv"
	"testing"

	"raftmine/fsm/pow"
)

var benchmarkWork = pow.Work{Previous: somePrevious, Timestamp: 1_790_000_000_000}

// sink keeps the compiler from dropping what a benchmark computes.
var sink uint32

// BenchmarkKernels is the hash rate of each kernel on one thread, for nonces of 8, 9 and 10 digits: 4.5, 45 and 50 % of
// the nonces of the exercise. The plain loops beside them are what one writes first.
func BenchmarkKernels(b *testing.B) {
	for _, first := range []uint64{10_000_000, 100_000_000, 1_000_000_000} {
		digits := fmt.Sprintf("digits=%d", len(strconv.FormatUint(first, 10)))
		b.Run("plain-sprintf/"+digits, func(b *testing.B) {
			previous := benchmarkWork.Previous.String()
			for i := range uint64(b.N) {
				inner := sha256.Sum256([]byte(fmt.Sprintf("%s%d%d", previous, first+i, benchmarkWork.Timestamp)))
				outer := sha256.Sum256(inner[:])
				sink ^= binary.BigEndian.Uint32(outer[:])
			}
			reportHashRate(b, uint64(b.N))
		})
		b.Run("plain-strconv/"+digits, func(b *testing.B) {
			message := benchmarkWork.Previous.String()
			buffer := append(make([]byte, 0, pow.MaxMessageSize), message...)
			timestamp := strconv.FormatUint(benchmarkWork.Timestamp, 10)
			for i := range uint64(b.N) {
				inner := sha256.Sum256(append(strconv.AppendUint(buffer, first+i, 10), timestamp...))
				outer := sha256.Sum256(inner[:])
				sink ^= binary.BigEndian.Uint32(outer[:])
			}
			reportHashRate(b, uint64(b.N))
		})
		b.Run("plain-midstate/"+digits, func(b *testing.B) {
			plain := plainMidstate(NewJob(benchmarkWork))
			for i := range uint64(b.N) {
				plain(first + i)
			}
			reportHashRate(b, uint64(b.N))
		})
		for _, k := range Kernels() {
			if !k.Available() {
				continue
			}
			b.Run(k.Name+"/"+digits, func(b *testing.B) {
				searcher, job, hits := k.New(), NewJob(benchmarkWork), make([]uint64, 16)
				var done uint64
				b.ReportAllocs()
				for b.Loop() {
					_, tried := searcher.Search(job, pow.Range{First: first + done, Last: first + done + 1<<20}, 0, hits)
					done += tried
				}
				reportHashRate(b, done)
			})
		}
	}
}

// plainMidstate returns what one writes first once the first block is not hashed anew for each nonce.
func plainMidstate(job *Job) func(nonce uint64) {
	s := sha256.New().(state)
	var buffer, digest [64]byte
	return func(nonce uint64) {
		_ = s.UnmarshalBinary(job.state) // no error: the bytes are crypto/sha256's own
		s.Write(append(strconv.AppendUint(buffer[:0], nonce, 10), job.Timestamp...))
		outer := sha256.Sum256(s.Sum(digest[:0]))
		sink ^= binary.BigEndian.Uint32(outer[:])
	}
}

func reportHashRate(b *testing.B, hashes uint64) {
	b.ReportMetric(float64(hashes)/b.Elapsed().Seconds(), "H/s")
}
