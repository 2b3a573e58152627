package webservice

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"go.etcd.io/bbolt"

	"raftmine/fsm/pow"
)

// chainOf returns a folder with a closed chain of some blocks, and its last hash.
func chainOf(t *testing.T, blocks int) (folder string, last pow.Hash) {
	t.Helper()
	folder = filepath.Join(t.TempDir(), "new", "chain")
	server, err := OpenServer(ServerConfig{DataDir: folder, Bits: testBits})
	if err != nil {
		t.Fatal(err)
	}
	for i := range blocks {
		last = mineBlock(t, server, uint64(i))
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	return folder, last
}

func TestChainGoesOnAfterARestart(t *testing.T) {
	folder, last := chainOf(t, 4)
	server := openServer(t, ServerConfig{DataDir: folder, Bits: testBits})
	if got := serverBlock(server); got.Height != 5 || got.Previous != last {
		t.Errorf("goes on with %+v, want %s at height 5", got, last)
	}
	mineBlock(t, server, 9)
}

func TestBlockIsInTheFileWhenSuccessIsAnswered(t *testing.T) {
	folder := t.TempDir()
	server := openServer(t, ServerConfig{DataDir: folder, Bits: testBits})
	for height := uint64(1); height <= 3; height++ {
		digest := mineBlock(t, server, height)
		// A copy of the file is what a kill at this moment would leave.
		file, err := os.ReadFile(filepath.Join(folder, ChainFile))
		if err != nil {
			t.Fatal(err)
		}
		left := t.TempDir()
		if err := os.WriteFile(filepath.Join(left, ChainFile), file, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := serverBlock(openServer(t, ServerConfig{DataDir: left})); got.Previous != digest || got.Height != height+1 {
			t.Errorf("a killed server would go on with %+v, want %s at height %d", got, digest, height+1)
		}
	}
}

func TestFolderOfARunningServerIsRefused(t *testing.T) {
	folder := t.TempDir()
	openServer(t, ServerConfig{DataDir: folder})
	_, err := OpenServer(ServerConfig{DataDir: folder})
	if !errors.Is(err, ErrInUse) {
		t.Fatalf("error %v, want one that says it is in use", err)
	}
	checkLine(t, err, "web service data directory "+folder+": used by another web service")
}

func TestGenesisOfAChainIsKept(t *testing.T) {
	folder := t.TempDir()
	other := pow.Sum([]byte("another"))
	server, err := OpenServer(ServerConfig{DataDir: folder, Genesis: other})
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
	if _, err := OpenServer(ServerConfig{DataDir: folder, Genesis: GenesisHash()}); err == nil {
		t.Error("a chain of another genesis is taken")
	} else {
		checkLine(t, err, "the chain starts from "+other.String())
	}
	if got := serverBlock(openServer(t, ServerConfig{DataDir: folder})).Previous; got != other {
		t.Errorf("starts from %s, want %s", got, other)
	}
}

func TestGenesisHashIsFixed(t *testing.T) {
	const want = "b7a7bcc223a529651663e9b6ef058a3ef2a6bf5d00ffd55c7d7acc2306f074f7"
	if got := GenesisHash().String(); got != want {
		t.Errorf("genesis hash %s, want %s: every chain would start anew", got, want)
	}
}

func TestDamagedFileIsAClearErrorAndIsLeftAlone(t *testing.T) {
	good, _ := chainOf(t, 40)
	file, err := os.ReadFile(filepath.Join(good, ChainFile))
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(path string) error{
		"text":  func(path string) error { return os.WriteFile(path, []byte("this is no chain\n"), 0o600) },
		"zeros": func(path string) error { return os.WriteFile(path, make([]byte, len(file)), 0o600) },
		"random": func(path string) error {
			return os.WriteFile(path, bytes.Repeat([]byte("\xde\xad\xbe\xef"), len(file)/4), 0o600)
		},
		"one byte":    func(path string) error { return os.Truncate(path, 1) },
		"one page":    func(path string) error { return os.Truncate(path, 4096) },
		"two pages":   func(path string) error { return os.Truncate(path, 2*4096) },
		"three pages": func(path string) error { return os.Truncate(path, 3*4096) },
		"half":        func(path string) error { return os.Truncate(path, int64(len(file)/2)) },
		// Reading a page that is mapped and past the end is a fault, not an error.
		"twelve pages": func(path string) error { return os.Truncate(path, 12*4096) },
		"wiped pages": func(path string) error {
			wiped := append([]byte(nil), file...)
			clear(wiped[2*4096:])
			return os.WriteFile(path, wiped, 0o600)
		},
		"foreign bucket": func(path string) error {
			return rewrite(path, func(tx *bbolt.Tx) error {
				if err := tx.DeleteBucket(factsBucket); err != nil {
					return err
				}
				_, err := tx.CreateBucket([]byte("logs"))
				return err
			})
		},
		"other version": func(path string) error {
			return rewrite(path, func(tx *bbolt.Tx) error {
				return tx.Bucket(factsBucket).Put(formatKey, []byte("raftmine web service chain 2"))
			})
		},
		"no genesis": func(path string) error {
			return rewrite(path, func(tx *bbolt.Tx) error { return tx.Bucket(factsBucket).Delete(genesisKey) })
		},
		"missing block": func(path string) error {
			return rewrite(path, func(tx *bbolt.Tx) error { return tx.Bucket(blocksBucket).Delete(heightKey(7)) })
		},
		"block under another height": func(path string) error {
			return rewrite(path, func(tx *bbolt.Tx) error {
				blocks := tx.Bucket(blocksBucket)
				last := bytes.Clone(blocks.Get(heightKey(40)))
				return errors.Join(blocks.Delete(heightKey(40)), blocks.Put(heightKey(41), last))
			})
		},
		"block not JSON": changeBlock(7, func(value []byte) []byte { return value[1:] }),
		"other hash": changeBlock(7, func(value []byte) []byte {
			return changeRecord(value, func(r *record) { r.Hash = GenesisHash().String() })
		}),
		"other previous hash": changeBlock(7, func(value []byte) []byte {
			return changeRecord(value, func(r *record) { r.PreviousHash = "\x1b[2J" })
		}),
		"other nonce": changeBlock(7, func(value []byte) []byte {
			return changeRecord(value, func(r *record) { r.Nonce += "0" })
		}),
		"more bits than proven": changeBlock(40, func(value []byte) []byte {
			return changeRecord(value, func(r *record) { r.Bits = 200 })
		}),
		"impossible next bits": changeBlock(40, func(value []byte) []byte {
			return changeRecord(value, func(r *record) { r.NextBits = 257 })
		}),
	} {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			path := filepath.Join(folder, ChainFile)
			if err := os.WriteFile(path, file, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := damage(path); err != nil {
				t.Fatal(err)
			}
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			server, err := OpenServer(ServerConfig{DataDir: folder})
			if err == nil {
				server.Close()
				t.Fatal("it is taken")
			}
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("error %v, want one that says it is damaged", err)
			}
			checkLine(t, err, path)
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
				t.Errorf("the file was changed (%v)", err)
			}
		})
	}
}

func TestFolderThatCannotBeUsedIsAClearError(t *testing.T) {
	folder := t.TempDir()
	taken := filepath.Join(folder, "file")
	if err := os.WriteFile(taken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenServer(ServerConfig{DataDir: taken}); err == nil {
		t.Error("a file is taken for a folder")
	} else {
		checkLine(t, err, "web service data directory: mkdir "+taken)
	}
	folderAsFile := t.TempDir()
	if err := os.Mkdir(filepath.Join(folderAsFile, ChainFile), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenServer(ServerConfig{DataDir: folderAsFile}); err == nil {
		t.Error("a folder is taken for a file")
	} else {
		checkLine(t, err, "is a directory")
	}
}

func TestServerThatCannotStoreAnswersNoMore(t *testing.T) {
	server := openServer(t, ServerConfig{DataDir: t.TempDir(), Bits: testBits})
	block := serverBlock(server)
	nonce, _ := solve(block, 1, 1)
	if err := server.chain.db.Close(); err != nil { // the disk is gone
		t.Fatal(err)
	}
	submission := "/submit.php?timestamp=1&nonce=" + strconv.FormatUint(nonce, 10)
	for _, target := range []string{submission, "/request.php", "/blocks.json"} {
		response := httptest.NewRecorder()
		server.ServeHTTP(response, httptest.NewRequest("GET", target, nil))
		if _, err := parseVerdict(response.Body.Bytes()); response.Code != 500 || err == nil {
			t.Errorf("%s: %d %s", target, response.Code, response.Body)
		}
	}
	if serverBlock(server) != block {
		t.Error("the chain moved")
	}
}

// rewrite changes a closed chain file.
func rewrite(path string, change func(*bbolt.Tx) error) error {
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		return err
	}
	return errors.Join(db.Update(change), db.Close())
}

func changeBlock(height uint64, change func(value []byte) []byte) func(path string) error {
	return func(path string) error {
		return rewrite(path, func(tx *bbolt.Tx) error {
			blocks := tx.Bucket(blocksBucket)
			return blocks.Put(heightKey(height), change(bytes.Clone(blocks.Get(heightKey(height)))))
		})
	}
}

func changeRecord(value []byte, change func(*record)) []byte {
	var block record
	if err := json.Unmarshal(value, &block); err != nil {
		panic(err)
	}
	change(&block)
	value, err := json.Marshal(block)
	if err != nil {
		panic(err)
	}
	return value
}
