package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"raftmine/miner/sha256d"
)

func TestBenchMeasuresEveryKernelOfThisMachine(t *testing.T) {
	code, stdout, stderr := command(t, "bench", "--duration", "10ms", "--threads", "2", "-o", "json")
	if code != exitDone || stderr != "" {
		t.Fatalf("exit code %d, said %q", code, stderr)
	}
	var view benchView
	if err := json.Unmarshal([]byte(stdout), &view); err != nil {
		t.Fatalf("%v in %s", err, stdout)
	}
	var want, got []string
	for _, k := range sha256d.Kernels() {
		if k.Available() {
			want = append(want, k.Name)
		}
	}
	best := 0.0
	for _, k := range view.Kernels {
		got = append(got, k.Name)
		best = max(best, k.ShareOfBest)
		if k.HashRate <= 0 || k.HashRateAllThreads <= 0 || k.TimesOneThread <= 0 || k.TimesPlain <= 0 || k.ShareOfBest <= 0 ||
			k.HashRateUndisturbed < k.HashRate || k.HashRate10Digits <= 0 || k.HashRate9Digits <= 0 || k.HashRate8Digits <= 0 {
			t.Errorf("kernel %+v, want rates", k)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("measured %v, want %v", got, want)
	}
	if view.CPU == "" || view.Threads != 2 || view.PlainHashRate <= 0 || best != 1 || view.Best != sha256d.Best().Name {
		t.Errorf("printed %s", stdout)
	}
	// The names that scripts rely on.
	for _, name := range []string{`"cpu":`, `"kernels":`, `"name":`, `"hash_rate":`, `"hash_rate_all_threads":`, `"times_one_thread":`, `"share_of_best":`, `"plain_hash_rate":`} {
		if !strings.Contains(stdout, name) {
			t.Errorf("no %s in %s", name, stdout)
		}
	}
}

func TestBenchPrintsATableForPeople(t *testing.T) {
	code, stdout, stderr := command(t, "bench", "--duration", "1ms", "--threads", "1", "--kernel", "generic")
	if code != exitDone || stderr != "" {
		t.Fatalf("exit code %d, said %q", code, stderr)
	}
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	if len(lines) != 5 || !strings.HasPrefix(lines[2], "KERNEL") || !strings.Contains(lines[2], "ALL/ONE") || !strings.HasPrefix(lines[3], "generic ") ||
		!strings.Contains(lines[3], "100 %") || !strings.HasPrefix(lines[4], "plain ") {
		t.Errorf("printed\n%s", stdout)
	}
}

func TestBenchEndsWhenItIsInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if code := execute(ctx, []string{"bench", "--duration", "1h"}, io.Discard, io.Discard); code != exitFailed {
		t.Errorf("exit code %d, want %d", code, exitFailed)
	}
	if _, err := measureKernels(ctx, sha256d.Kernels()[:0], 1, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that it was canceled", err)
	}
}

func TestTurnsStayInTheirStretch(t *testing.T) {
	const threads, tried = 64, 5_000_000 // in a turn, on any machine
	for i, stretch := range benchStretches {
		for _, turns := range []int{1, 3, 1000} {
			for turn := range turns {
				first := placeOfTurn(i, turn, turns)
				last := first + threads<<17 + tried
				if len(strconv.FormatUint(first, 10)) != stretch.digits || len(strconv.FormatUint(last, 10)) != stretch.digits {
					t.Fatalf("turn %d of %d starts at %d, want %d digits to its end", turn, turns, first, stretch.digits)
				}
			}
		}
	}
}

func TestOverallRateIsThatOfASearchOfAllNonces(t *testing.T) {
	rates := benchRates{{1, 40e6, 90e6}, {20e6}, {10e6}}
	medians, overall := rates.at(benchMedian)
	if medians != [3]float64{40e6, 20e6, 10e6} {
		t.Errorf("medians %v", medians)
	}
	if seconds := 2e9 / overall; math.Abs(seconds-(1e9/40e6+0.9e9/20e6+0.1e9/10e6)) > 1e-3 {
		t.Errorf("overall rate %v: a search of all nonces takes %v s, want 80", overall, seconds)
	}
}

func TestUnknownKernelIsRefusedWithTheNamesThereAre(t *testing.T) {
	var names []string
	for _, k := range sha256d.Kernels() {
		if k.Available() {
			names = append(names, k.Name)
		}
	}
	here := strings.Join(names, ", ") + "\nhint: \"raftmine bench\" measures those that this machine can run\n"
	for _, args := range []string{"bench --kernel abacus", "miner --kernel abacus", "run --kernel abacus", "server --mine 1 --kernel abacus", "bench --threads 0", "bench --duration 0s"} {
		code, stdout, stderr := command(t, strings.Fields(args)...)
		if code != exitUsage || stdout != "" {
			t.Errorf("%s: exit code %d, printed %q", args, code, stdout)
		}
		if want := `raftmine: --kernel: unknown kernel "abacus", want one of ` + here; strings.Contains(args, "abacus") && stderr != want {
			t.Errorf("%s: said %q, want %q", args, stderr, want)
		}
	}
	for _, k := range sha256d.Kernels() {
		if k.Available() {
			continue
		}
		code, _, stderr := command(t, "bench", "--kernel", k.Name)
		if want := fmt.Sprintf("raftmine: --kernel: kernel %q is not available on this machine, want one of %s", k.Name, here); code != exitUsage || stderr != want {
			t.Errorf("exit code %d, said %q, want %q", code, stderr, want)
		}
	}
}

// The leader is told which kernel a miner uses.
func TestMinerUsesTheKernelItIsTold(t *testing.T) {
	environment := filepath.Join(keepOnFailure(t), "environment")
	in := []string{"--environment", environment, "-o", "json"}
	service := startProcess(t, append([]string{"webservice", "--zeros", "16"}, in...)...)
	service.waitEvent(0, "process_started")
	server := startProcess(t, append([]string{"server"}, in...)...)
	server.waitEvent(0, "process_started")
	startProcess(t, append([]string{"miner", "--kernel", "generic", "--threads", "1", "--name", "slow"}, in...)...)
	minerUses(t, environment, "slow", "generic")
	startProcess(t, append([]string{"server", "--mine", "1", "--kernel", "generic"}, in...)...)
	minerUses(t, environment, "server-2", "generic")
}

func TestRunTellsItsMinersTheKernel(t *testing.T) {
	dir := keepOnFailure(t)
	startProcess(t, "run", "--servers", "1", "--miners", "1", "--zeros", "16", "--kernel", "generic", "--data-dir", dir)
	minerUses(t, filepath.Join(dir, "environment"), "miner-1", "generic")
}

func minerUses(t *testing.T, environment, name, kernel string) {
	t.Helper()
	eventually(t, "the miner says which kernel it uses", func() string {
		view, problem := statusOf(t, environment)
		if problem != "" {
			return problem
		}
		for _, m := range view.Miners {
			if m.Name == name && m.Kernel == kernel {
				return ""
			}
		}
		return fmt.Sprintf("no such miner: %+v", view.Miners)
	})
}
