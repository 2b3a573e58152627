package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"raftmine/fsm/pow"
	"raftmine/miner/sha256d"
)

// Every rate is the median of many short turns, in which the contenders take part one after the other: a machine that
// is busy at times slows all of them alike, and a median forgets the worst. (tuning)
const (
	benchTurn      = time.Millisecond     // of one thread: shorter than what a busy machine takes a processor away for
	benchTurnAll   = 5 * time.Millisecond // of all threads, which do not start in the same instant
	benchFewest    = 3                    // turns
	benchHitRoom   = 16
	benchPlainName = "plain"
)

// benchStretches are the nonces of the exercise by their number of digits, which decides how fast a kernel is. Each is
// measured by itself; the rate over all nonces is what a search of 1 to 2,000,000,000 would have. Nonces of less than 8
// digits, half a percent, count as if they had 8.
var benchStretches = [...]struct {
	digits int
	first  uint64
	nonces float64
}{{10, 1_000_000_000, 1_000_000_001}, {9, 100_000_000, 900_000_000}, {8, 10_000_000, 99_999_999}}

// benchView is what "bench" prints as JSON. Scripts rely on the names. All rates are double SHA-256 a second.
type benchView struct {
	CPU           string        `json:"cpu"`
	Threads       int           `json:"threads"`
	Best          string        `json:"best"` // the kernel that miners use here unless told otherwise
	Kernels       []benchKernel `json:"kernels"`
	PlainHashRate float64       `json:"plain_hash_rate"` // a loop on crypto/sha256 with the midstate, on one thread

	PlainUndisturbed float64 `json:"plain_hash_rate_undisturbed"`
}

type benchKernel struct {
	Name             string  `json:"name"`
	HashRate         float64 `json:"hash_rate"` // on one thread, over the nonces 1 to 2,000,000,000
	HashRate10Digits float64 `json:"hash_rate_10_digits"`
	HashRate9Digits  float64 `json:"hash_rate_9_digits"`
	HashRate8Digits  float64 `json:"hash_rate_8_digits"`
	// HashRateUndisturbed is HashRate of the fastest tenth of the turns, those that other programs disturbed least.
	HashRateUndisturbed float64 `json:"hash_rate_undisturbed"`
	HashRateAllThreads  float64 `json:"hash_rate_all_threads"`
	TimesOneThread      float64 `json:"times_one_thread"` // all threads against one, each in turns of the same length
	ShareOfBest         float64 `json:"share_of_best"`    // of the highest hash_rate here, 0 to 1
	TimesPlain          float64 `json:"times_plain"`
}

func newBenchCommand() *cobra.Command {
	var (
		duration time.Duration
		threads  int
		name     string
	)
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure the hash rate of each search kernel on this machine",
		Long: `Measure the hash rate of each search kernel that this machine can run, on one thread and on all, and beside them a
plain loop on crypto/sha256 that computes the first block's state once. A hash is one double SHA-256 of one message. Each
rate is the median of many short turns, taken for nonces of 10, 9 and 8 digits; the rate over the nonces 1 to 2,000,000,000
follows from these. UNDISTURBED is the same of the fastest tenth of the turns, which other programs disturbed least. ALL/ONE
is all threads against one, the median of turns that follow each other.

A machine that does nothing else gives undisturbed figures: end other programs, miners above all, and take --duration 10s.
Where that cannot be had, UNDISTURBED comes closest on one thread; ALL/ONE is then too low, because others take part of
what all threads would have.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := jsonOutput(cmd)
			if err != nil {
				return err
			}
			if threads < 1 || threads > 1024 {
				return usageError{fmt.Errorf("--threads %d: want 1 to 1024", threads)}
			}
			if duration <= 0 {
				return usageError{fmt.Errorf("--duration %s: want more than 0s", duration)}
			}
			var kernels []sha256d.Kernel
			if name != "" {
				kernel, err := kernelNamed(name)
				if err != nil {
					return err
				}
				kernels = append(kernels, kernel)
			} else {
				kernels = slices.DeleteFunc(sha256d.Kernels(), func(k sha256d.Kernel) bool {
					_, err := sha256d.ByName(k.Name) // a kernel that finds the wrong nonces has no rate
					return err != nil
				})
			}
			view, err := measureKernels(cmd.Context(), kernels, threads, duration)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), view)
			}
			return printBench(cmd.OutOrStdout(), view)
		},
	}
	cmd.Flags().DurationVar(&duration, "duration", time.Second, "how long to measure each kernel, on one thread and again on all and one")
	cmd.Flags().IntVar(&threads, "threads", runtime.NumCPU(), "how many threads are all")
	cmd.Flags().StringVar(&name, "kernel", "", "measure this kernel alone (default: every one that this machine can run)")
	return cmd
}

// kernelNamed returns the kernel that --kernel names.
func kernelNamed(name string) (sha256d.Kernel, error) {
	kernel, err := sha256d.ByName(name)
	if err != nil {
		return kernel, hinted(usageError{fmt.Errorf("--kernel: %w", err)}, `"raftmine bench" measures those that this machine can run`)
	}
	return kernel, nil
}

// addKernelFlag adds --kernel to a command that starts miners.
func addKernelFlag(cmd *cobra.Command, kernel *string) {
	cmd.Flags().StringVar(kernel, "kernel", "", "search kernel, one of those that \"raftmine bench\" lists (default: the fastest here)")
}

// kernelFlags is what a miner is told of --kernel; an error when there is no such kernel here.
func kernelFlags(name string) ([]string, error) {
	if name == "" {
		return nil, nil
	}
	if _, err := kernelNamed(name); err != nil {
		return nil, err
	}
	return []string{"--kernel", name}, nil
}

// contender is what takes part in the measurement: a way to try nonces until a turn is over.
type contender struct {
	name    string
	workers []benchWorker // one a thread
	one     benchRates    // of the turns on one thread
	all     benchRates    // and on all of them
	times   []float64     // all of them against one, turn by turn
}

// benchRates are the rates of turns in each of benchStretches.
type benchRates [len(benchStretches)][]float64

// at returns the rate in each stretch that this part of the turns, below 1, was slower than, and the rate over all nonces
// that follows from them.
func (r *benchRates) at(part float64) (rates [len(benchStretches)]float64, overall float64) {
	nonces, seconds := 0.0, 0.0
	for i, stretch := range benchStretches {
		slices.Sort(r[i])
		rates[i] = r[i][int(part*float64(len(r[i])))]
		nonces += stretch.nonces
		seconds += stretch.nonces / rates[i]
	}
	return rates, nonces / seconds
}

// Which of the turns tell a rate: the middle one; and where other programs slow most turns, one of the fastest.
const (
	benchMedian      = 0.5
	benchUndisturbed = 0.9
)

// benchWorker tries nonces from first on, at least until the time is over, and returns how many.
type benchWorker func(first uint64, length time.Duration) (tried uint64)

func measureKernels(ctx context.Context, kernels []sha256d.Kernel, threads int, duration time.Duration) (benchView, error) {
	work := pow.Work{Previous: pow.Sum([]byte("raftmine bench")), Timestamp: uint64(time.Now().UnixMilli())}
	view := benchView{CPU: cpuName(), Threads: threads, Best: sha256d.Best().Name, Kernels: []benchKernel{}}
	plain := &contender{name: benchPlainName}
	contenders := []*contender{plain}
	for _, k := range kernels {
		contenders = append(contenders, &contender{name: k.Name})
	}
	job := sha256d.NewJob(work)
	for range threads {
		plain.workers = append(plain.workers, plainWorker(work))
		for i, k := range kernels {
			contenders[1+i].workers = append(contenders[1+i].workers, kernelWorker(k, job))
		}
	}
	turns := max(benchFewest, int(duration/benchTurn)/len(benchStretches))
	for turn := range turns {
		for stretch := range benchStretches {
			for _, c := range contenders {
				if err := ctx.Err(); err != nil {
					return view, err
				}
				c.one[stretch] = append(c.one[stretch], c.rate(1, placeOfTurn(stretch, turn, turns), benchTurn))
			}
		}
	}
	turns = max(benchFewest, int(duration/benchTurnAll)/len(benchStretches))
	for turn := range turns {
		for stretch := range benchStretches {
			for _, c := range contenders[1:] {
				if err := ctx.Err(); err != nil {
					return view, err
				}
				place := placeOfTurn(stretch, turn, turns)
				one, all := c.rate(1, place, benchTurnAll), c.rate(threads, place, benchTurnAll)
				c.all[stretch] = append(c.all[stretch], all)
				c.times = append(c.times, all/one)
			}
		}
	}
	_, view.PlainHashRate = plain.one.at(benchMedian)
	_, view.PlainUndisturbed = plain.one.at(benchUndisturbed)
	highest := 0.0
	for _, c := range contenders[1:] {
		one, overall := c.one.at(benchMedian)
		_, undisturbed := c.one.at(benchUndisturbed)
		_, all := c.all.at(benchMedian)
		slices.Sort(c.times)
		k := benchKernel{Name: c.name, HashRate: overall, HashRateAllThreads: all, TimesOneThread: c.times[len(c.times)/2],
			HashRateUndisturbed: undisturbed, HashRate10Digits: one[0], HashRate9Digits: one[1], HashRate8Digits: one[2]}
		k.TimesPlain = k.HashRate / view.PlainHashRate
		highest = max(highest, k.HashRate)
		view.Kernels = append(view.Kernels, k)
	}
	for i := range view.Kernels {
		view.Kernels[i].ShareOfBest = view.Kernels[i].HashRate / highest
	}
	return view, nil
}

// placeOfTurn is the first nonce of a turn: they are spread evenly over most of a stretch.
func placeOfTurn(stretch, turn, turns int) uint64 {
	first := benchStretches[stretch].first
	return first + uint64(float64(turn)/float64(turns)*0.8*float64(first))
}

// rate runs a turn on the first threads workers and returns what they did together in a second. The turn begins for all when
// the last one is there, so that those who had to take turns at a processor do not look as if each had one.
func (c *contender) rate(threads int, first uint64, length time.Duration) float64 {
	rates := make([]float64, threads)
	var start time.Time
	var missing atomic.Int64
	missing.Store(int64(threads))
	begun := make(chan struct{})
	var wg sync.WaitGroup
	for i := range threads {
		wg.Go(func() {
			if missing.Add(-1) == 0 {
				start = time.Now()
				close(begun)
			}
			<-begun
			tried := c.workers[i](first+uint64(i)<<17, length)
			rates[i] = float64(tried) / time.Since(start).Seconds()
		})
	}
	wg.Wait()
	sum := 0.0
	for _, rate := range rates {
		sum += rate
	}
	return sum
}

func kernelWorker(kernel sha256d.Kernel, job *sha256d.Job) benchWorker {
	searcher, hits := kernel.New(), make([]uint64, benchHitRoom)
	return func(first uint64, length time.Duration) (tried uint64) {
		for start := time.Now(); time.Since(start) < length; {
			_, n := searcher.Search(job, pow.Range{First: first + tried, Last: math.MaxUint64}, 0, hits)
			tried += n
		}
		return tried
	}
}

// plainWorker is what one writes first once the previous hash's block is not hashed anew for each nonce. It is what the
// kernels are compared with, so it shares no code with them.
func plainWorker(work pow.Work) benchWorker {
	type state interface {
		hash.Hash
		encoding.BinaryAppender
		encoding.BinaryUnmarshaler
	}
	h := sha256.New().(state)
	h.Write(hex.AppendEncode(nil, work.Previous[:]))
	midstate, _ := h.AppendBinary(nil) // never an error
	timestamp := strconv.FormatUint(work.Timestamp, 10)
	var message, digest [sha256.BlockSize]byte
	return func(first uint64, length time.Duration) (tried uint64) {
		for start := time.Now(); time.Since(start) < length; {
			for range 500 { // between two looks at the clock
				_ = h.UnmarshalBinary(midstate) // no error: the bytes are crypto/sha256's own
				h.Write(append(strconv.AppendUint(message[:0], first+tried, 10), timestamp...))
				outer := sha256.Sum256(h.Sum(digest[:0]))
				digest[0] ^= outer[0] // so that it is computed
				tried++
			}
		}
		return tried
	}
}

func printBench(w io.Writer, view benchView) error {
	fmt.Fprintf(w, "%s; median rates, nonces 1 to 2,000,000,000; miners use %s\n\n", view.CPU, view.Best)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "KERNEL\t10 DIGITS\t9 DIGITS\t8 DIGITS\t1 THREAD\tUNDISTURBED\t%d THREADS\tALL/ONE\tOF THE BEST\tTIMES PLAIN\n", view.Threads)
	for _, k := range view.Kernels {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%.2f\t%.0f %%\t%.2f\n", k.Name, hashRate(k.HashRate10Digits), hashRate(k.HashRate9Digits),
			hashRate(k.HashRate8Digits), hashRate(k.HashRate), hashRate(k.HashRateUndisturbed), hashRate(k.HashRateAllThreads), k.TimesOneThread, 100*k.ShareOfBest, k.TimesPlain)
	}
	fmt.Fprintf(table, "%s\t\t\t\t%s\t%s\t\t\t\t1.00\n", benchPlainName, hashRate(view.PlainHashRate), hashRate(view.PlainUndisturbed))
	return table.Flush()
}

// cpuName returns the processor's name where the operating system tells it, else its architecture.
func cpuName() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for scanner := bufio.NewScanner(bytes.NewReader(data)); scanner.Scan(); {
		key, value, _ := bytes.Cut(scanner.Bytes(), []byte(":"))
		if string(bytes.TrimSpace(key)) == "model name" {
			return string(bytes.TrimSpace(value))
		}
	}
	return runtime.GOARCH
}
