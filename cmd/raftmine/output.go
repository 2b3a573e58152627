package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// printer prints what happens: plain lines, or with --output json one object a line. It is safe for concurrent use.
// A live line, if there is one, is wiped before each print and drawn again after it.
type printer struct {
	mu   sync.Mutex
	w    io.Writer
	json bool
	// terminal: people read it on a terminal, where a live line can be wiped.
	terminal bool
	columns  func() int // of the terminal now; 0: not known
	live     string     // shown below the printed lines, on a terminal only
	err      error      // the first that a write came to; see failed
}

func newPrinter(cmd *cobra.Command) (*printer, error) {
	asJSON, err := jsonOutput(cmd)
	if err != nil {
		return nil, err
	}
	w := cmd.OutOrStdout()
	file, isFile := w.(*os.File)
	p := &printer{w: w, json: asJSON, terminal: isFile && !asJSON && term.IsTerminal(int(file.Fd()))}
	p.columns = func() int {
		columns, _, err := term.GetSize(int(file.Fd()))
		if err != nil {
			return 0
		}
		return columns
	}
	return p, nil
}

// print writes object in JSON mode, else the text.
func (p *printer) print(object any, format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.json {
		p.note(json.NewEncoder(p.w).Encode(object))
		return
	}
	p.wipe()
	_, err := fmt.Fprintf(p.w, format+"\n", args...)
	p.note(err)
	p.draw()
}

func (p *printer) note(err error) {
	if p.err == nil && err != nil {
		p.err = fmt.Errorf("print: %w", err)
	}
}

// failed returns the first error of a write. A command that only prints ends with it; a cluster does not stop mining
// because nobody can read about it, but says so at its end.
func (p *printer) failed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// setLive replaces the live line; "" removes it.
func (p *printer) setLive(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wipe()
	p.live = oneLine(text)
	p.draw()
}

func (p *printer) wipe() {
	if p.live != "" {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

func (p *printer) draw() {
	if p.live != "" {
		fmt.Fprint(p.w, cutLine(p.live, p.columns()))
	}
}

// cutLine cuts text to less than a row of a terminal: a wipe reaches one row only, and a full one may end in the next.
// 0 columns cut nothing.
func cutLine(text string, columns int) string {
	if columns <= 0 {
		return text
	}
	const more = "..."
	used, fits := 0, 0 // fits: bytes that leave room for more
	for at, r := range text {
		width := 1
		if r >= 0x1100 { // from here on a character may be two columns wide
			width = 2
		}
		if used+len(more) < columns {
			fits = at
		}
		if used += width; used >= columns {
			return text[:fits] + more[:min(len(more), columns-1)]
		}
	}
	return text
}

// processStarted says that a process is ready.
func (p *printer) processStarted(started processStarted) {
	started.Event = "process_started"
	name := started.Role
	if started.ID != 0 {
		name = fmt.Sprintf("%s %d", started.Role, started.ID)
	} else if started.Name != "" {
		name = fmt.Sprintf("%s %s", started.Role, started.Name)
	}
	line := fmt.Sprintf("%-14s pid %-7d %s", name, started.PID, started.Address)
	if started.DataDir != "" {
		line += "  data in " + started.DataDir
	}
	p.print(started, "%s", strings.TrimSpace(line))
}

func printJSON(w io.Writer, object any) error {
	return json.NewEncoder(w).Encode(object)
}

// hashRate writes a rate in double SHA-256 a second for people.
func hashRate(rate float64) string {
	switch {
	case rate >= 1e9:
		return fmt.Sprintf("%.2f GH/s", rate/1e9)
	case rate >= 1e6:
		return fmt.Sprintf("%.1f MH/s", rate/1e6)
	case rate >= 1e3:
		return fmt.Sprintf("%.0f kH/s", rate/1e3)
	default:
		return fmt.Sprintf("%.0f H/s", rate)
	}
}

// clock writes a wall-clock time for people.
func clock(t time.Time) string { return t.Format("15:04:05.000") }
