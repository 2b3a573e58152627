package raftnode

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// A sealed file is a small JSON file that decides who a server is, or what it may do with its log, so a flipped bit must not pass:
// it holds its body and the SHA-256 of the body without white space. Protocol with the disk.
type sealedFile struct {
	Format int             `json:"format"`
	SHA256 string          `json:"sha256"`
	Body   json.RawMessage `json:"body"`
}

const (
	sealedFormat   = 1
	maxSealedBytes = 4 << 20
)

func encodeSealed(body any) ([]byte, error) {
	compact, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	content, err := json.MarshalIndent(sealedFile{Format: sealedFormat, SHA256: sealOf(compact), Body: compact}, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(content, '\n'), nil
}

func sealOf(compact []byte) string {
	sum := sha256.Sum256(compact)
	return hex.EncodeToString(sum[:])
}

// decodeSealed reads what encodeSealed wrote, and nothing else.
func decodeSealed(content []byte, body any) error {
	if len(bytes.TrimSpace(content)) == 0 {
		return errors.New("is empty")
	}
	var file sealedFile
	if err := decodeStrict(content, &file); err != nil {
		return err
	}
	if file.Format != sealedFormat {
		return fmt.Errorf("format is %d, this raftmine knows %d", file.Format, sealedFormat)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, file.Body); err != nil {
		return errors.New("has no body")
	}
	if file.SHA256 != sealOf(compact.Bytes()) {
		return errors.New("its checksum is wrong")
	}
	return decodeStrict(compact.Bytes(), body)
}

func decodeStrict(content []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("has something after its end")
	}
	return nil
}

// writeSealed replaces the file, by a temporary one on the same file system; when it returns nil it is on the disk.
func writeSealed(path string, body any) error {
	content, err := encodeSealed(body)
	if err == nil {
		err = renameio.WriteFile(path, content, 0o600, renameio.WithTempDir(filepath.Dir(path)))
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func damagedFile(path string, err error) error {
	advice := "move the directory away to join as a new server, and never put an older copy of the file in its place"
	if filepath.Base(path) == recoveryFileName { // it may be the only directory that is left
		advice = "move this file away, and start again: what was recovered is in the log and in the journal"
	}
	return fmt.Errorf("%w: %s: %w; %s", ErrDamagedDataDir, path, err, advice)
}

// readSealed returns fs.ErrNotExist when there is no such file, and ErrDamagedDataDir when it cannot be understood.
func readSealed(path string, body interface{ check() error }) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	damaged := func(err error) error {
		return damagedFile(path, err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxSealedBytes {
		return damaged(fmt.Errorf("not a regular file of at most %d bytes", maxSealedBytes))
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := decodeSealed(content, body); err != nil {
		return damaged(err)
	}
	if err := body.check(); err != nil {
		return damaged(err)
	}
	return nil
}
