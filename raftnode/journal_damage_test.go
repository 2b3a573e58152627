package raftnode

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// damagedJournal writes a whole journal of several segments, and lets change damage a copy of it.
type damagedJournal struct {
	testHistory
	folder string
	n      int
	files  map[string]string
	names  []string // of the segments
}

func newDamagedJournal(t *testing.T) *damagedJournal {
	d := &damagedJournal{testHistory: newTestHistory(60), folder: quickDir(t), n: 60}
	dir := quickDir(t)
	j := mustOpenJournal(t, dir)
	d.mustApply(t, j, 0, d.n)
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	d.files = journalFiles(t, dir)
	for _, path := range segments(t, dir) {
		d.names = append(d.names, filepath.Base(path))
	}
	if len(d.names) < 4 {
		t.Fatal("few segments")
	}
	return d
}

// recordNumber is how an audit names a record by its index, which is another number than that in the history.
var recordNumber = regexp.MustCompile(`record [0-9]`)

// damage writes a copy with a change, and wants reader and server to find it. It returns the reader's error.
func (d *damagedJournal) damage(t *testing.T, what string, change func(files map[string]string)) error {
	t.Helper()
	dir, err := os.MkdirTemp(d.folder, "") // for each damage another one
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for name, content := range d.files {
		files[name] = content
	}
	change(files)
	if err := os.Mkdir(filepath.Join(dir, journalFolder), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, journalFolder, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	reader, err := ReadJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	var readErr error
	for _, err := range reader.Records() {
		readErr = err
	}
	if readErr == nil || strings.Contains(readErr.Error(), "\n") || !strings.Contains(readErr.Error(), dir) {
		t.Errorf("%s: reading gives %v", what, readErr)
	}
	var where *JournalError
	if errors.As(readErr, &where) && (where.Index > 0 && !strings.Contains(readErr.Error(), fmt.Sprintf(": index %d: ", where.Index)) ||
		recordNumber.MatchString(readErr.Error())) {
		t.Errorf("%s: a record is named by its index alone, as audits do: %v", what, readErr)
	}
	j, err := openTestJournal(dir)
	if err == nil {
		err = j.verify(t.Context())
		if closeErr := j.close(); closeErr != nil {
			t.Error(closeErr)
		}
	}
	if !errors.Is(err, ErrJournalDamaged) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: a server finds %v", what, err)
	}
	sameFiles(t, files, journalFiles(t, dir))
	return readErr
}

func TestFlippedByteIsFoundWhereverItIs(t *testing.T) {
	d := newDamagedJournal(t)
	random := rand.New(rand.NewPCG(uint64(os.Getpid()), 7))
	for _, name := range append(d.names, syncedFileName, writtenFileName) {
		size := len(d.files[name])
		offsets := []int{0, 8, 12, 16, 80, 104, 139, size - 1, size - 5, size - 9}
		for range 12 {
			offsets = append(offsets, random.IntN(size))
		}
		for _, offset := range offsets {
			bit := byte(1) << random.IntN(8)
			err := d.damage(t, fmt.Sprintf("%s, byte %d, bit %08b", name, offset, bit), func(files map[string]string) {
				changed := []byte(files[name])
				changed[offset] ^= bit
				files[name] = string(changed)
			})
			var where *JournalError
			if !errors.As(err, &where) || filepath.Base(where.Path) != name || where.Offset > int64(offset) {
				t.Errorf("%s, byte %d: %v", name, offset, err)
			} else if header, markErr := parseHeader([]byte(d.files[name]), segmentMagic); markErr == nil { // not "synced", nor "written"
				first := header.base.Index + 1
				if offset >= segmentHeaderSize && where.Index < first ||
					offset < segmentHeaderSize && (where.Index != first || where.Record != header.base.Records+1) {
					t.Errorf("%s, byte %d: the index is not named, of a header that of its first record, %d: %v", name, offset, first, err)
				}
			}
		}
	}
}

func TestRemovedReorderedAndReplacedRecordsAreFound(t *testing.T) {
	d := newDamagedJournal(t)
	middle := d.names[1]
	var bounds []int // of the records in the middle segment
	for offset := segmentHeaderSize; offset < len(d.files[middle]); {
		bounds = append(bounds, offset)
		head, err := parseRecordHead([]byte(d.files[middle][offset:]))
		if err != nil {
			t.Fatal(err)
		}
		offset += head.size()
	}
	bounds = append(bounds, len(d.files[middle]))
	for k := range len(bounds) - 1 {
		from, to := bounds[k], bounds[k+1]
		first, err := parseRecordHead([]byte(d.files[middle][bounds[0]:]))
		if err != nil {
			t.Fatal(err)
		}
		number := int(first.number) + k
		named := func(what string, err error, record int) {
			t.Helper()
			var where *JournalError
			if !errors.As(err, &where) || where.Record != uint64(record) {
				t.Errorf("%s: %v; want record %d to be named", what, err, record)
			}
		}
		named("removed", d.damage(t, "removed record", func(files map[string]string) {
			files[middle] = files[middle][:from] + files[middle][to:]
		}), number)
		named("doubled", d.damage(t, "doubled record", func(files map[string]string) {
			files[middle] = files[middle][:to] + files[middle][from:]
		}), number+1)
		// With new checksums, so that only the chain is in the way.
		named("replaced", d.damage(t, "replaced record", func(files map[string]string) {
			head := d.heads[number]
			data := slices.Clone(d.data[number-1])
			data[0] ^= 1
			files[middle] = files[middle][:from] + string(appendRecord(nil, head, data)) + files[middle][to:]
		}), number)
		named("replaced, with a chain of its own", d.damage(t, "rechained record", func(files map[string]string) {
			data := slices.Clone(d.data[number-1])
			data[0] ^= 1
			head := d.heads[number-1].Next(d.heads[number].Index, d.heads[number].Term, data)
			files[middle] = files[middle][:from] + string(appendRecord(nil, head, data)) + files[middle][to:]
		}), number+1)
		if k > 0 {
			named("reordered", d.damage(t, "reordered pair", func(files map[string]string) {
				before := bounds[k-1]
				files[middle] = files[middle][:before] + files[middle][from:to] + files[middle][before:from] + files[middle][to:]
			}), number-1)
		}
		named("truncated", d.damage(t, "truncated segment", func(files map[string]string) {
			files[middle] = files[middle][:from]
		}), number)
		named("truncated within a record", d.damage(t, "segment truncated within a record", func(files map[string]string) {
			files[middle] = files[middle][:from+1+(to-from)/2]
		}), number)
	}
	_ = d.damage(t, "truncated last segment", func(files map[string]string) {
		last := d.names[len(d.names)-1]
		files[last] = files[last][:segmentHeaderSize]
	})
	for i, name := range d.names {
		_ = d.damage(t, "removed segment "+name, func(files map[string]string) { delete(files, name) })
		_ = d.damage(t, "emptied segment "+name, func(files map[string]string) { files[name] = "" })
		if i > 0 {
			_ = d.damage(t, "exchanged segments", func(files map[string]string) {
				files[name], files[d.names[i-1]] = files[d.names[i-1]], files[name]
			})
		}
	}
	_ = d.damage(t, "all segments removed", func(files map[string]string) {
		for _, name := range d.names {
			delete(files, name)
		}
	})
	for name, magic := range map[string]string{syncedFileName: syncedMagic, writtenFileName: writtenMagic} {
		_ = d.damage(t, "the head of another history in the file "+name, func(files map[string]string) {
			head := d.heads[d.n]
			head.Hash[3]++
			files[name] = string(appendHeader(nil, magic, segmentHeader{clusterID: "test-cluster", base: head}))
		})
		_ = d.damage(t, "no file "+name, func(files map[string]string) { delete(files, name) })
	}
}
