package raftnode

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

const envJournalWriter = "RAFTMINE_JOURNAL_TEST_DIR"

const killedRecords = 40_000

// The test binary runs itself again as a process that goes on with a journal until it is killed.
func init() {
	dir := os.Getenv(envJournalWriter)
	if dir == "" {
		return
	}
	err := func() error {
		j, err := openTestJournal(dir)
		if err != nil {
			return err
		}
		h := newHistoryOf(killedRecords, 60)
		from := j.end().Records
		if from > 0 {
			if err := j.restored(h.heads[from]); err != nil {
				return err
			}
		}
		fmt.Println(from)
		for k := int(from); k < killedRecords; k++ {
			if err := j.append(h.heads[k+1], h.data[k]); err != nil {
				return err
			}
			if k%100 == 0 {
				if err := j.sync(); err != nil {
					return err
				}
			}
		}
		_, err = io.Copy(io.Discard, os.Stdin) // it waits to be killed
		return err
	}()
	slog.Error("journal writer ended", "error", err)
	os.Exit(1)
}

func TestJournalSurvivesKillsWhileItIsWritten(t *testing.T) {
	h, dir := newHistoryOf(killedRecords, 60), quickDir(t)
	kept := 0
	for round := range 5 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), envJournalWriter+"="+dir)
		cmd.Stderr = os.Stderr
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var from int
		_, scanErr := fmt.Fscan(stdout, &from)
		time.Sleep(time.Duration(round*10) * time.Millisecond) // any moment will do
		_ = cmd.Process.Kill()
		_, _ = io.Copy(io.Discard, stdout)
		_ = cmd.Wait()
		_ = stdin.Close()
		if scanErr != nil || from < kept {
			t.Fatalf("the writer goes on from record %d, at least %d were there (%v)", from, kept, scanErr)
		}
		// Nothing that was appended is lost by a kill, and what is there is whole.
		count, err := h.read(t, dir, 0)
		if err != nil || count < from {
			t.Fatalf("round %d: %d records, then %v", round, count, err)
		}
		kept = count
		if count > 0 { // it got so far before the kill
			wantEveryCutFound(t, h, dir, count)
		}
	}
	if kept < 100 {
		t.Errorf("only %d records in all rounds", kept)
	}
}

// wantEveryCutFound cuts the end of a killed server's journal, which nobody synced, at random offsets. A kill may come between
// a record and its note: then that one record may be gone unseen.
func wantEveryCutFound(t *testing.T, h testHistory, dir string, count int) {
	t.Helper()
	marks, err := readMarks(filepath.Join(dir, journalFolder))
	if err != nil || int(marks.written.Records) < count-1 {
		t.Fatalf("%d of %d records are noted: %v", marks.written.Records, count, err)
	}
	files := journalFiles(t, dir)
	names := segments(t, dir)
	last := filepath.Base(names[len(names)-1])
	whole := files[last]
	for range 20 {
		cut := segmentHeaderSize + rand.IntN(len(whole)-segmentHeaderSize+1)
		files[last] = whole[:cut]
		left, err := h.read(t, putJournal(t, files), 0)
		var where *JournalError
		if left < int(marks.written.Records) && (!errors.As(err, &where) || where.Record != uint64(left+1)) {
			t.Fatalf("cut at %d of %d bytes: %d of %d records read, then %v", cut, len(whole), left, marks.written.Records, err)
		}
	}
}
