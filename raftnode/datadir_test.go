package raftnode

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"raftmine/fsm"
	"raftmine/raftnode/registry"
)

func openDir(t *testing.T, path string) *DataDir {
	t.Helper()
	dir, err := OpenDataDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	return dir
}

func wantError(t *testing.T, err, target error, words ...string) {
	t.Helper()
	if err == nil || target != nil && !errors.Is(err, target) {
		t.Fatalf("error is %v, want %v", err, target)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q is more than one line", err)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error %q does not say %q", err, word)
		}
	}
}

// snapshotOf lists every file below dir with its content.
func snapshotOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			files[path] = "folder"
			return err
		}
		content, err := os.ReadFile(path)
		files[path] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestNewDataDirIsMadeForItsUserAloneWithARequestID(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	dir := openDir(t, path)
	identity := dir.Identity()
	if identity.RequestID == (fsm.ID{}) || identity.ServerID != 0 || identity.ClusterID != "" || identity.Format != 1 {
		t.Errorf("identity of a new directory is %+v", identity)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory %v (%v), want mode 0700", info.Mode(), err)
	}
	if dir.Path() != path {
		t.Errorf("path is %s, want %s", dir.Path(), path)
	}
	if err := errors.Join(dir.Close(), dir.Close()); err != nil {
		t.Fatal(err)
	}
	if again := openDir(t, path).Identity(); again != identity {
		t.Errorf("identity was %+v and became %+v", identity, again)
	}
	if other := openDir(t, filepath.Join(t.TempDir(), "c")).Identity(); other.RequestID == identity.RequestID {
		t.Error("two directories have the same request id")
	}
}

func TestRelativeDataDirIsMadeAbsolute(t *testing.T) {
	t.Chdir(t.TempDir())
	if path := openDir(t, "here").Path(); !filepath.IsAbs(path) || filepath.Base(path) != "here" {
		t.Errorf("path is %s", path)
	}
	_, err := OpenDataDir("")
	wantError(t, err, nil, "no path")
}

func TestIdentityIsKeptOnceGiven(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	dir := openDir(t, path)
	request := dir.Identity().RequestID
	refuse := func(identity Identity) {
		t.Helper()
		before := dir.Identity()
		if err := dir.SetIdentity(identity); err == nil {
			t.Errorf("identity %+v was accepted after %+v", identity, before)
		}
		if after := dir.Identity(); after != before {
			t.Errorf("a refused identity changed %+v to %+v", before, after)
		}
	}
	accept := func(identity Identity) {
		t.Helper()
		if err := dir.SetIdentity(identity); err != nil {
			t.Fatal(err)
		}
		identity.Format, identity.RequestID = 1, request
		if got := dir.Identity(); got != identity {
			t.Errorf("identity is %+v, want %+v", got, identity)
		}
		if err := dir.Close(); err != nil {
			t.Fatal(err)
		}
		dir = openDir(t, path)
		if got := dir.Identity(); got != identity {
			t.Errorf("after opening again identity is %+v, want %+v", got, identity)
		}
	}
	refuse(Identity{ServerID: 1})
	refuse(Identity{RequestID: fsm.ID{1}})
	accept(Identity{Address: "127.0.0.1:7001"})
	accept(Identity{ClusterID: "lost", Address: "127.0.0.1:7001"})
	accept(Identity{ClusterID: "c", ServerID: 3, Address: "127.0.0.1:7001"})
	refuse(Identity{ClusterID: "c", ServerID: 4})
	refuse(Identity{ClusterID: "d", ServerID: 3})
	refuse(Identity{})
	accept(Identity{RequestID: request, ClusterID: "c", ServerID: 3, Address: "127.0.0.1:7002"})
	if err := dir.Close(); err != nil {
		t.Fatal(err)
	}
	wantError(t, dir.SetIdentity(Identity{ClusterID: "c", ServerID: 3}), fs.ErrClosed, path)
}

func TestDataDirOfARunningServerIsRefusedAndThatOfAKilledOneIsFree(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	holder := startDataDirPart(t, "hold", path).ready()
	before := snapshotOf(t, path)
	_, err := OpenDataDir(path)
	wantError(t, err, ErrDataDirInUse, path, fmt.Sprintf("(pid %d)", holder.cmd.Process.Pid))
	if after := snapshotOf(t, path); !reflect.DeepEqual(before, after) {
		t.Errorf("the refused server changed the directory from %v to %v", before, after)
	}
	holder.kill()
	dir := openDir(t, path)
	// In the same process too.
	_, err = OpenDataDir(path)
	wantError(t, err, ErrDataDirInUse, path, fmt.Sprintf("(pid %d)", os.Getpid()))
	if err := dir.Close(); err != nil {
		t.Fatal(err)
	}
	openDir(t, path)
}

// A kill at any moment leaves an identity: the old one or the new one.
func TestIdentitySurvivesKillsWhileItIsWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	request := openDir(t, path)
	want := request.Identity().RequestID
	if err := request.Close(); err != nil {
		t.Fatal(err)
	}
	addresses := map[string]bool{}
	for i := range 12 {
		writer := startDataDirPart(t, "rewrite", path).ready()
		until := time.Now().Add(time.Duration(i) * 3 * time.Millisecond)
		for time.Now().Before(until) { // reads meanwhile are whole as well
			identity, err := readIdentity(path)
			if err != nil || identity.RequestID != want {
				t.Fatalf("identity %+v (%v)", identity, err)
			}
		}
		writer.kill()
		dir, err := OpenDataDir(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := dir.Identity(); got.RequestID != want {
			t.Fatalf("request id became %x, was %x", got.RequestID, want)
		}
		addresses[dir.Identity().Address] = true
		entries, err := os.ReadDir(path)
		if err != nil || len(entries) != 2 {
			t.Errorf("%d files (%v) in the directory, want lock and server.json", len(entries), err)
		}
		if err := dir.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(addresses) < 3 {
		t.Errorf("only the addresses %v were ever stored; the test did not test", addresses)
	}
}

func TestPartlyMadeDataDirHasNoIdentityYet(t *testing.T) {
	for name, files := range map[string][]string{
		"empty":         nil,
		"lock":          {"lock"},
		"killed writer": {"lock", ".server.json123", ".server.json9"},
		"killed probe":  {"lock", ".probe"},
		"mount point":   {"lost+found"},
	} {
		t.Run(name, func(t *testing.T) {
			path := t.TempDir()
			for _, file := range files {
				if err := os.WriteFile(filepath.Join(path, file), []byte("{"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			identity := openDir(t, path).Identity()
			if identity.ServerID != 0 || identity.RequestID == (fsm.ID{}) {
				t.Errorf("identity is %+v", identity)
			}
			for _, file := range files {
				if _, err := os.Stat(filepath.Join(path, file)); isLeftover(file) != errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: %v", file, err)
				}
			}
		})
	}
}

func TestForeignDataDirIsRefusedAndNotTouched(t *testing.T) {
	photos := filepath.Join(t.TempDir(), "photos")
	for _, name := range []string{"a.jpg", "b.jpg", "c.jpg", "d.jpg", "lock"} {
		if err := errors.Join(os.MkdirAll(photos, 0o700), os.WriteFile(filepath.Join(photos, name), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	before := snapshotOf(t, photos)
	_, err := OpenDataDir(photos)
	wantError(t, err, ErrForeignDataDir, photos, "a.jpg, b.jpg, c.jpg and 1 more")
	if after := snapshotOf(t, photos); !reflect.DeepEqual(before, after) {
		t.Errorf("the directory was changed from %v to %v", before, after)
	}

	// Raft's files without an identity are somebody's loss, not a new server's.
	lost := filepath.Join(t.TempDir(), "lost")
	if err := errors.Join(os.MkdirAll(lost, 0o700), os.WriteFile(filepath.Join(lost, "raft.db"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	_, err = OpenDataDir(lost)
	wantError(t, err, ErrForeignDataDir, "raft.db")

	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = OpenDataDir(file)
	wantError(t, err, nil, file, "not a directory")
	_, err = OpenDataDir(filepath.Join(file, "below"))
	wantError(t, err, nil, file, "not a directory")
}

// sealedText is a sealed file with this body.
func sealedText(t *testing.T, body string) string {
	t.Helper()
	content, err := encodeSealed(json.RawMessage(body))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// changeIdentity changes server.json as DataDir never would, with a seal that fits.
func changeIdentity(t *testing.T, dir string, change func(*identityFile)) {
	t.Helper()
	old, err := readIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	file := identityFile{RequestID: uuid.UUID(old.RequestID), ClusterID: old.ClusterID, ServerID: old.ServerID, Address: old.Address}
	change(&file)
	if err := writeSealed(filepath.Join(dir, identityFileName), file); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedIdentityIsNamedAndNotReplaced(t *testing.T) {
	const id = `"request_id":"6ba7b810-9dad-41d1-80b4-00c04fd430c8"`
	for name, content := range map[string]string{
		"empty":          "",
		"blank":          " \n",
		"cut":            `{"format":1,` + id,
		"no object":      `[]`,
		"no format":      `{` + id + `}`,
		"no request id":  sealedText(t, `{}`),
		"bad request id": sealedText(t, `{"request_id":"six"}`),
		"zero id":        sealedText(t, `{"request_id":"00000000-0000-0000-0000-000000000000"}`),
		"no cluster":     sealedText(t, `{`+id+`,"server_id":1}`),
		"negative":       sealedText(t, `{`+id+`,"server_id":-1,"cluster_id":"c"}`),
		"two objects":    sealedText(t, `{`+id+`}`) + "{}",
		"no seal":        `{"format":1,` + id + `}`,
		"unknown field":  sealedText(t, `{`+id+`,"id":1}`),
		"another server": strings.Replace(sealedText(t, `{`+id+`,"server_id":1,"cluster_id":"c"}`), `"server_id": 1`, `"server_id": 3`, 1),
		"binary":         "\x00\x01\x02",
		"huge":           strings.Repeat(" ", maxIdentityBytes) + sealedText(t, `{`+id+`}`),
	} {
		t.Run(name, func(t *testing.T) {
			path := t.TempDir()
			file := filepath.Join(path, "server.json")
			if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the refusal frees the lock
				_, err := OpenDataDir(path)
				wantError(t, err, ErrDamagedDataDir, file)
			}
			if after, err := os.ReadFile(file); err != nil || string(after) != content {
				t.Errorf("the damaged file was changed to %q (%v)", after, err)
			}
		})
	}
	path := t.TempDir()
	if err := os.WriteFile(filepath.Join(path, "server.json"), []byte(`{"format":2,`+id+`}`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := OpenDataDir(path)
	wantError(t, err, nil, "format 2", "newer version")
	if err := errors.Join(os.Remove(filepath.Join(path, "server.json")), os.Mkdir(filepath.Join(path, "server.json"), 0o700)); err != nil {
		t.Fatal(err)
	}
	_, err = OpenDataDir(path)
	wantError(t, err, ErrDamagedDataDir, "not a regular file")
}

func openEnvironment(t *testing.T) *registry.Environment {
	t.Helper()
	env, err := registry.Open(filepath.Join(t.TempDir(), "environment"))
	if err != nil {
		t.Fatal(err)
	}
	return env
}

func claim(t *testing.T, env *registry.Environment) *DataDir {
	t.Helper()
	dir, err := claimDataDir(env)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	return dir
}

func TestFirstFreeDataDirIsClaimedInNaturalOrder(t *testing.T) {
	env := openEnvironment(t)
	var dirs []*DataDir
	for i := 1; i <= 11; i++ {
		dir := claim(t, env)
		if want := filepath.Join(env.DataDir(), fmt.Sprintf("server-%d", i)); dir.Path() != want {
			t.Fatalf("claim %d gave %s, want %s", i, dir.Path(), want)
		}
		dirs = append(dirs, dir)
	}
	if err := errors.Join(dirs[9].Close(), dirs[1].Close()); err != nil { // server-10 and server-2
		t.Fatal(err)
	}
	if got := filepath.Base(claim(t, env).Path()); got != "server-2" {
		t.Errorf("claimed %s, want server-2", got)
	}
	if got := filepath.Base(claim(t, env).Path()); got != "server-10" {
		t.Errorf("claimed %s, want server-10", got)
	}
	if got := filepath.Base(claim(t, env).Path()); got != "server-12" {
		t.Errorf("claimed %s, want server-12", got)
	}
}

func TestClaimPassesOverForeignThingsButNotOverDamage(t *testing.T) {
	env := openEnvironment(t)
	foreign := filepath.Join(env.DataDir(), "backup")
	err := errors.Join(
		os.Mkdir(foreign, 0o700),
		os.WriteFile(filepath.Join(foreign, "server-1.tar"), nil, 0o600),
		os.WriteFile(filepath.Join(env.DataDir(), "server-9"), nil, 0o600),
		os.Mkdir(filepath.Join(env.DataDir(), ".hidden"), 0o700),
	)
	if err != nil {
		t.Fatal(err)
	}
	first := claim(t, env)
	if filepath.Base(first.Path()) != "server-1" {
		t.Errorf("claimed %s, want server-1", first.Path())
	}
	if others, err := OtherDataDirs(env, first); err != nil || len(others) != 0 {
		t.Errorf("others are %v (%v), want none", others, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(first.Path(), "server.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = claimDataDir(env)
	wantError(t, err, ErrDamagedDataDir, filepath.Join(first.Path(), "server.json"))
	_, err = OtherDataDirs(env, nil)
	wantError(t, err, ErrDamagedDataDir, filepath.Join(first.Path(), "server.json"))
}

func TestOtherDataDirsSayWhetherAServerHasThem(t *testing.T) {
	env := openEnvironment(t)
	stopped, half, joining, own := claim(t, env), claim(t, env), claim(t, env), claim(t, env)
	if err := stopped.SetIdentity(Identity{ClusterID: "c", ServerID: 1, Address: "h:1"}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(stopped.Close(), half.Close()); err != nil {
		t.Fatal(err)
	}
	others, err := OtherDataDirs(env, own)
	if err != nil {
		t.Fatal(err)
	}
	want := []DataDirInfo{
		{Path: stopped.Path(), Identity: stopped.Identity()},
		{Path: half.Path(), Identity: half.Identity()},
		{Path: joining.Path(), Identity: joining.Identity(), InUse: true, PID: os.Getpid()},
	}
	if !reflect.DeepEqual(others, want) {
		t.Errorf("others are\n%+v, want\n%+v", others, want)
	}
	var has []bool
	for _, other := range others {
		has = append(has, other.HasServer())
	}
	if !slices.Equal(has, []bool{true, false, true}) {
		t.Errorf("a server has them: %v", has)
	}
	if all, err := OtherDataDirs(env, nil); err != nil || len(all) != 4 {
		t.Errorf("without an own one there are %d (%v), want 4", len(all), err)
	}
}

// Processes that start in the same instant get different directories; killed ones give theirs back.
func TestProcessesThatStartAtOnceClaimDifferentDataDirs(t *testing.T) {
	const processes = 8
	env := openEnvironment(t)
	for round := range 3 {
		var started []*dataDirProcess
		for range processes {
			started = append(started, startDataDirPart(t, "claim", env.Dir()))
		}
		var got []string
		for _, p := range started {
			got = append(got, filepath.Base(p.ready().path))
		}
		slices.SortFunc(got, naturalCompare)
		var want []string
		for i := 1; i <= processes; i++ {
			want = append(want, fmt.Sprintf("server-%d", i))
		}
		if !slices.Equal(got, want) {
			t.Errorf("round %d: claimed %v, want %v", round, got, want)
		}
		for _, p := range started {
			p.kill()
		}
	}
}

func TestNaturalOrderCountsAsPeopleDo(t *testing.T) {
	want := []string{"", "a", "server", "server-", "server-0", "server-00", "server-01", "server-1", "server-2", "server-9",
		"server-10", "server-10-b", "server-10a", "server-99999999999999999999", "server-100000000000000000000", "web"}
	for i, a := range want {
		for j, b := range want {
			if got, expected := naturalCompare(a, b), min(1, max(-1, i-j)); got != expected {
				t.Errorf("compare %q with %q: %d, want %d", a, b, got, expected)
			}
		}
	}
	for name, number := range map[string]int{
		"server-1": 1, "server-12": 12, "server-": 0, "server--1": 0, "server-x": 0, "1": 0,
		"server-99999999999999999999": 0,
	} {
		if got := dirNumber(name); got != number {
			t.Errorf("number of %q is %d, want %d", name, got, number)
		}
	}
}

func TestLocalHostIsTheSameEachTimeAndNotEmpty(t *testing.T) {
	host := LocalHost()
	if host.MachineID == "" || host.BootID == "" {
		t.Errorf("host is %+v", host)
	}
	if again := LocalHost(); again != host {
		t.Errorf("host was %+v and is %+v", host, again)
	}
}
