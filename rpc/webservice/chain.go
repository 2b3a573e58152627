package webservice

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"raftmine/fsm/pow"
)

// Errors of the server's store.
var (
	// ErrInUse: another process has the data directory.
	ErrInUse = errors.New("used by another web service")
	// ErrDamaged: the file is not a chain that this version wrote.
	ErrDamaged = errors.New("damaged, or not a web service's chain")
)

// ChainFile is the name of the chain in the data directory.
const ChainFile = "chain.db"

// The file's layout (protocol of the data directory): a bucket of facts and a bucket of records, whose keys are
// heights in 8 big-endian bytes, from 1 without a gap.
const chainFormat = "raftmine web service chain 1"

var (
	factsBucket  = []byte("facts")
	blocksBucket = []byte("blocks")
	formatKey    = []byte("format")
	genesisKey   = []byte("genesis")
)

// record is one accepted block, as stored and as blocks.json shows it. Nonce and timestamp are opaque decimal text.
type record struct {
	Height            uint64 `json:"height"`
	Hash              string `json:"hash"`
	PreviousHash      string `json:"previous_hash"`
	Nonce             string `json:"nonce"`
	Timestamp         string `json:"timestamp"`
	Bits              int    `json:"bits"`
	NextBits          int    `json:"next_bits"`
	PoolName          string `json:"poolname"`
	AcceptedUnixMilli int64  `json:"accepted_unix_milli"`
}

// chain is the store of the accepted blocks.
type chain struct {
	path string
	db   *bbolt.DB
}

// tip is where a chain ends.
type tip struct {
	hash   pow.Hash
	height uint64 // of the newest block; 0: none yet
	bits   int    // of the block to come; meaningless at height 0
}

// openChain opens or makes the chain in folder and checks every block of it. genesis is the hash that a new chain
// starts with; the zero hash means GenesisHash for a new chain and any for an old one.
func openChain(folder string, genesis pow.Hash) (*chain, tip, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, tip{}, fmt.Errorf("web service data directory: %w", err)
	}
	c := &chain{path: filepath.Join(folder, ChainFile)}
	err := guard(func() (err error) {
		c.db, err = bbolt.Open(c.path, 0o600, &bbolt.Options{Timeout: time.Second})
		return err
	})
	pathError, isPathError := errors.AsType[*os.PathError](err)
	_, isSystemError := errors.AsType[syscall.Errno](err)
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, tip{}, fmt.Errorf("web service data directory %s: %w", folder, ErrInUse)
	case isPathError:
		return nil, tip{}, fmt.Errorf("web service data directory: %w", pathError)
	case isSystemError:
		return nil, tip{}, fmt.Errorf("open %s: %w", c.path, err)
	case err != nil:
		return nil, tip{}, fmt.Errorf("open %s: %w", c.path, damaged(err))
	}
	var end tip
	err = guard(func() (err error) {
		if err = c.prepare(genesis); err == nil {
			end, err = c.verify(genesis)
		}
		return err
	})
	if err == nil {
		err = syncFolder(folder)
	}
	if err != nil {
		c.db.Close() // nothing of this process is lost in it
		return nil, tip{}, fmt.Errorf("open %s: %w", c.path, err)
	}
	return c, end, nil
}

// damaged marks err, once.
func damaged(err error) error {
	if errors.Is(err, ErrDamaged) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// guard turns a panic of bbolt on a damaged file, and the fault of reading past the end of a truncated one, into an
// error.
func guard(work func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if fault := recover(); fault != nil {
			if _, ok := fault.(runtime.Error); ok {
				fault = "its pages cannot be read"
			}
			err = fmt.Errorf("%w: %s", ErrDamaged, excerpt(fmt.Append(nil, fault)))
		}
	}()
	return work()
}

// prepare makes the buckets of a new chain. A file with other buckets is left alone.
func (c *chain) prepare(genesis pow.Hash) error {
	empty := true
	err := c.db.View(func(tx *bbolt.Tx) error {
		first, _ := tx.Cursor().First()
		empty = first == nil
		return nil
	})
	if err != nil || !empty {
		return err
	}
	if genesis == (pow.Hash{}) {
		genesis = GenesisHash()
	}
	return c.db.Update(func(tx *bbolt.Tx) error {
		if _, err := tx.CreateBucket(blocksBucket); err != nil {
			return err
		}
		facts, err := tx.CreateBucket(factsBucket)
		if err != nil {
			return err
		}
		if err := facts.Put(formatKey, []byte(chainFormat)); err != nil {
			return err
		}
		return facts.Put(genesisKey, []byte(genesis.String()))
	})
}

// verify walks the chain from its first block and returns its end.
func (c *chain) verify(genesis pow.Hash) (end tip, err error) {
	err = c.db.View(func(tx *bbolt.Tx) error {
		facts, blocks := tx.Bucket(factsBucket), tx.Bucket(blocksBucket)
		if facts == nil || blocks == nil || string(facts.Get(formatKey)) != chainFormat {
			return fmt.Errorf("%w: it lacks the mark %q", ErrDamaged, chainFormat)
		}
		start, err := pow.ParseHash(string(facts.Get(genesisKey)))
		if err != nil {
			return fmt.Errorf("%w: genesis: %w", ErrDamaged, err)
		}
		if genesis != (pow.Hash{}) && genesis != start {
			return fmt.Errorf("the chain starts from %s, not from %s", start, genesis)
		}
		end.hash = start
		return blocks.ForEach(func(key, value []byte) error {
			block, err := checkRecord(key, value, end)
			if err != nil {
				return fmt.Errorf("%w: block %d: %w", ErrDamaged, end.height+1, err)
			}
			end = block
			return nil
		})
	})
	return end, err
}

// checkRecord judges the record that follows end and returns the new end.
func checkRecord(key, value []byte, end tip) (tip, error) {
	var block record
	if err := json.Unmarshal(value, &block); err != nil {
		return tip{}, err
	}
	height := end.height + 1
	if string(key) != string(heightKey(height)) || block.Height != height {
		return tip{}, fmt.Errorf("found height %d", block.Height)
	}
	if block.PreviousHash != end.hash.String() {
		return tip{}, fmt.Errorf("previous hash %s, want %s", excerpt([]byte(block.PreviousHash)), end.hash)
	}
	digest := pow.SumText(end.hash, block.Nonce, block.Timestamp)
	if block.Hash != digest.String() || digest.LeadingZeroBits() < block.Bits {
		return tip{}, errors.New("its proof does not hold")
	}
	if block.NextBits < 0 || block.NextBits > pow.MaxBits {
		return tip{}, fmt.Errorf("%d bits for the block to come", block.NextBits)
	}
	return tip{hash: digest, height: height, bits: block.NextBits}, nil
}

// add stores block and returns when it is on disk.
func (c *chain) add(block record) error {
	value, err := json.Marshal(block)
	if err != nil {
		return err
	}
	return c.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(blocksBucket).Put(heightKey(block.Height), value)
	})
}

// newest returns at most limit records, newest first, as they are stored.
func (c *chain) newest(limit int) ([]json.RawMessage, error) {
	records := make([]json.RawMessage, 0, limit)
	err := c.db.View(func(tx *bbolt.Tx) error {
		cursor := tx.Bucket(blocksBucket).Cursor()
		for key, value := cursor.Last(); key != nil && len(records) < limit; key, value = cursor.Prev() {
			records = append(records, append(json.RawMessage(nil), value...)) // value ends with the transaction
		}
		return nil
	})
	return records, err
}

func heightKey(height uint64) []byte { return binary.BigEndian.AppendUint64(nil, height) }

// syncFolder makes the name of a new file durable; bbolt syncs the file alone.
func syncFolder(folder string) error {
	handle, err := os.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(handle.Sync(), handle.Close())
}
