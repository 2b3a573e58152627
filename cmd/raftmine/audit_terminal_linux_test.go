package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// openTerminal returns both ends of a terminal of so many columns; 0: it has no size.
func openTerminal(t *testing.T, columns uint16) (screen, stdout *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { screen.Close() })
	number, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(int(screen.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns})
	}
	if err != nil {
		t.Fatal(err)
	}
	stdout, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdout.Close() }) // after all was read: a hangup may overtake what was written before it
	return screen, stdout
}

// onTerminal runs a command whose standard output is a terminal, and returns all that was written to it.
func onTerminal(t *testing.T, args ...string) (code int, written string) {
	t.Helper()
	terminal, stdout := openTerminal(t, 0)
	const end = "\x04"
	read := make(chan string)
	go func() {
		all, _ := bufio.NewReader(terminal).ReadString(end[0])
		read <- strings.TrimSuffix(all, end)
	}()
	var stderr bytes.Buffer
	code = execute(t.Context(), args, stdout, &stderr)
	if _, err := io.WriteString(stdout, end); err != nil {
		t.Fatal(err)
	}
	if written = <-read; stderr.Len() > 0 {
		t.Errorf("%v: said %s", args, &stderr)
	}
	return code, written
}

// TestLongAuditShowsProgressOnATerminal, in a line that is gone when the audit goes on, and nowhere else.
func TestLongAuditShowsProgressOnATerminal(t *testing.T) {
	const wipe = "\r\x1b[K"
	progress := regexp.MustCompile(`long\.jsonl: (\d+) records replayed, \d+/s`)
	long := longExport(t, 20_000)
	_, plain, _ := command(t, "audit", long)

	code, written := onTerminal(t, "audit", long)
	if code != exitDone {
		t.Errorf("exit code %d", code)
	}
	var told []string
	for _, match := range progress.FindAllStringSubmatch(written, -1) {
		told = append(told, match[1])
	}
	if fmt.Sprint(told[:min(2, len(told))]) != "[8192 16384]" {
		t.Errorf("progress after %v records, want every 8192", told)
	}
	// What stays on the screen: a wiped line leaves nothing.
	var screen []string
	for line := range strings.SplitSeq(strings.ReplaceAll(written, "\r\n", "\n"), "\n") {
		if at := strings.LastIndex(line, wipe); at >= 0 {
			line = line[at+len(wipe):]
		}
		screen = append(screen, line)
	}
	if got := strings.Join(screen, "\n"); got != plain {
		t.Errorf("the screen shows\n%s\nwant what is printed elsewhere:\n%s", got, plain)
	}
	if strings.Contains(plain, "\x1b") || strings.Contains(plain, "replayed") {
		t.Errorf("progress where there is no terminal:\n%s", plain)
	}

	other := filepath.Join(t.TempDir(), "other.jsonl")
	if err := os.Link(long, other); err != nil {
		t.Fatal(err)
	}
	_, written = onTerminal(t, "audit", long, other, "--export", filepath.Join(t.TempDir(), "export"), "--recheck", "1", "--at", "17000")
	for _, done := range []string{"counted", "replayed", "read", "exported"} {
		if !regexp.MustCompile(`jsonl: 16384 records ` + done + `, \d+/s`).MatchString(written) {
			t.Errorf("no progress of records that are %s", done)
		}
	}

	if _, written = onTerminal(t, "audit", goldenExport, "--recheck", "1"); !strings.Contains(written, wipe) || !strings.Contains(written, "searched again: 1 range,") {
		t.Errorf("no progress of ranges that are searched again:\n%s", written)
	}
	if _, written = onTerminal(t, "audit", long, "-o", "json"); strings.Contains(written, "\x1b") {
		t.Error("JSON has progress in it")
	}
}

// TestLiveLineTakesOneRow of the terminal, however long it is: a wipe reaches no second one.
func TestLiveLineTakesOneRow(t *testing.T) {
	screen, stdout := openTerminal(t, 40)
	cmd := &cobra.Command{}
	cmd.Flags().String("output", "text", "")
	cmd.SetOut(stdout)
	out, err := newPrinter(cmd)
	if err != nil {
		t.Fatal(err)
	}
	out.setLive("leader 1, web service: " + strings.Repeat("<html>", 20))
	out.setLive("leader 2, web service:\n" + strings.Repeat("\u754c", 60)) // each two columns wide
	out.print(nil, "%s", strings.Repeat("a printed line is not cut ", 4))
	out.setLive("short")
	out.setLive("")
	if _, err := io.WriteString(stdout, "\x04"); err != nil {
		t.Fatal(err)
	}
	written, err := bufio.NewReader(screen).ReadString('\x04')
	if err != nil {
		t.Fatal(err)
	}
	const wipe = "\r\x1b[K"
	want := "leader 1, web service: <html><html><..." + wipe +
		"leader 2, web service:; " + strings.Repeat("\u754c", 6) + "..." + wipe +
		strings.Repeat("a printed line is not cut ", 4) + "\r\n" +
		"leader 2, web service:; " + strings.Repeat("\u754c", 6) + "..." + wipe + "short" + wipe + "\x04"
	if written != want {
		t.Errorf("wrote\n%q, want\n%q", written, want)
	}
}
