package main

import (
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"raftmine/raftnode"
)

// TestWrongCommandLinesSayWhatIsWrong: one clear line, the right exit code, and nothing started or written.
func TestWrongCommandLinesSayWhatIsWrong(t *testing.T) {
	for _, row := range []struct {
		args string
		code int
		says string
	}{
		{"run --servers 0", exitUsage, "--servers 0: want 1 to 15"},
		{"run --servers two", exitUsage, `invalid argument "two" for "--servers" flag: want a whole number`},
		{"run --respawn=perhaps", exitUsage, `want true or false`},
		{"proof --record -1", exitUsage, `invalid argument "-1" for "--record" flag: want a whole number from 0 on`},
		{"audit --at 99999999999999999999", exitUsage, `want a whole number from 0 on, and not so large a one`},
		{"audit --recheck half", exitUsage, `invalid argument "half" for "--recheck" flag: want a number`},
		{"run --miners -1", exitUsage, "--miners -1"},
		{"run --zeros 65", exitUsage, "--zeros 65"},
		{"run --block-time -1s", exitUsage, "--block-time -1s"},
		{"run --web-service ftp://x", exitUsage, `"ftp://x": want http://`},
		{"run --nonce-first 0", exitUsage, "starts at 0"},
		{"run --nonce-first 9 --nonce-last 8", exitUsage, "is empty"},
		{"run --chunk 0", exitUsage, "--chunk 0"},
		{"run --nonce-last 18446744073709551615", exitUsage, "raise --chunk"},
		{"run --heartbeat 1ms", exitUsage, "--heartbeat 1ms"},
		{"run --bogus", exitUsage, "unknown flag: --bogus"},
		{"drill --servers 2", exitUsage, "--servers 2: want 3 to 15"},
		{"drill --faults 0", exitUsage, "--faults 0"},
		{"drill --clients -1", exitUsage, "--clients -1"},
		{"drill --miners 65", exitUsage, "--miners 65"},
		{"drill --seed -1", exitUsage, "invalid argument \"-1\""},
		{"drill --chunk 0", exitUsage, "--chunk 0"},
		{"run extra", exitUsage, "unknown command \"extra\""},
		{"dig", exitUsage, `unknown command "dig"`},
		{"serve", exitUsage, `unknown command "serve" for "raftmine"`}, // cobra has three lines more to say
		{"help serve", exitUsage, `unknown command "serve" for "raftmine"`},
		{"server lisst", exitUsage, `unknown command "lisst" for "raftmine server"`},
		{"status -o xml", exitUsage, `--output "xml"`},
		{"server --listen 0.0.0.0:7000", exitUsage, "not a loopback address"},
		{"server --listen :7000", exitUsage, "not a loopback address"},
		{"server --listen localhost", exitUsage, "want HOST:PORT"},
		{"server --listen 127.0.0.1:70000", exitUsage, "port \"70000\""},
		{"server --join nowhere", exitUsage, `--join "nowhere"`},
		{"server --web-service ftp://x", exitUsage, `"ftp://x": want http://`},
		{"server --mine -1", exitUsage, "--mine -1"},
		{"server --raft-timeout 100ms", exitUsage, "--raft-timeout 100ms: want 300ms to 2s"},
		{"server --raft-timeout 3s", exitUsage, "--raft-timeout 3s"},
		{"server --log-level loud", exitUsage, `--log-level "loud"`},
		{"webservice --listen 10.1.2.3:80", exitUsage, "not a loopback address"},
		{"webservice --zeros 0", exitUsage, "--zeros 0"},
		{"miner --servers foo", exitUsage, `--servers "foo": want HOST:PORT`},
		{"miner --servers 127.0.0.1:0", exitUsage, `port "0"`},
		{"status --servers 127.0.0.1", exitUsage, `--servers "127.0.0.1"`},
		{"status --servers ,", exitUsage, `--servers ",": it names no address`},
		{"status --servers=", exitUsage, "--servers is given without a value"},
		{"server --join=", exitUsage, "--join is given without a value"},
		{"server --data-dir=", exitUsage, "--data-dir is given without a value"},
		{"run --web-service=", exitUsage, "--web-service is given without a value"},
		{"server --advertise 127.0.0.1:0", exitUsage, `--advertise "127.0.0.1:0": port "0"`},
		{"server --advertise ://", exitUsage, `--advertise "://"`},
		{"server --advertise 127.0.0.1", exitUsage, `--advertise "127.0.0.1"`},
		{"server --advertise 127.0.0.1:1,127.0.0.1:2", exitUsage, "want one HOST:PORT"},
		{"server --advertise 10.1.2.3:7000", exitUsage, "--advertise 10.1.2.3:7000 is not a loopback address"},
		{"server --advertise example.org:7000", exitUsage, "--advertise example.org:7000 is not a loopback address"},
		{"server --advertise 0.0.0.0:7000", exitUsage, "--advertise 0.0.0.0:7000: no other server can dial that address"},
		{"server --insecure --listen 0.0.0.0:0", exitUsage, "--listen 0.0.0.0:0: no other server can dial that address"},
		{"server --insecure --listen :0", exitUsage, "--listen :0: no other server can dial that address"},
		{"server --insecure --listen [::]:0", exitUsage, "--listen [::]:0: no other server can dial that address"},
		{"miner --threads 0", exitUsage, "--threads 0"},
		{"miner --name a/b", exitUsage, "--name"},
		{"miner --name " + strings.Repeat("x", 65), exitUsage, "at most 64"},
	} {
		t.Run(row.args, func(t *testing.T) {
			environment := filepath.Join(t.TempDir(), "environment")
			t.Chdir(t.TempDir())
			code, stdout, stderr := command(t, append(strings.Fields(row.args), "--environment", environment)...)
			line, _, _ := strings.Cut(stderr, "\n")
			if code != row.code || !strings.HasPrefix(line, "raftmine: ") || !strings.Contains(line, row.says) {
				t.Errorf("exit code %d, want %d; said %q, want %q", code, row.code, stderr, row.says)
			}
			if lines := strings.Count(stderr, "\n"); lines > 2 {
				t.Errorf("said %d lines, want one and a hint:\n%s", lines, stderr)
			}
			if stdout != "" {
				t.Errorf("printed %q", stdout)
			}
			if _, err := os.Stat(environment); !os.IsNotExist(err) {
				t.Errorf("made an environment (%v)", err)
			}
			if left, _ := os.ReadDir("."); len(left) != 0 {
				t.Errorf("left %v behind", left)
			}
		})
	}
}

// TestCommandsThatCannotWorkSayWhatToDo: the world is in the way, not the command line.
func TestCommandsThatCannotWorkSayWhatToDo(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := gone.Addr().String()
	gone.Close()

	dir := t.TempDir()
	foreign := filepath.Join(dir, "foreign")
	file := filepath.Join(dir, "file")
	for _, err := range []error{os.Mkdir(foreign, 0o700), os.WriteFile(filepath.Join(foreign, "thesis.txt"), []byte("mine"), 0o600),
		os.WriteFile(file, []byte("a file"), 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct {
		name string
		args []string
		says []string
	}{
		{"server's port in use", []string{"server", "--listen", busy.Addr().String()}, []string{busy.Addr().String(), "in use", "hint: "}},
		{"web service's port in use", []string{"webservice", "--listen", busy.Addr().String()}, []string{busy.Addr().String(), "in use", "hint: "}},
		{"foreign data directory", []string{"server", "--data-dir", foreign}, []string{foreign, "thesis.txt", "hint: "}},
		{"run's foreign data directory", []string{"run", "--data-dir", foreign}, []string{foreign, "thesis.txt", "hint: choose an empty folder"}},
		{"web service's foreign data directory", []string{"webservice", "--data-dir", foreign}, []string{foreign, "thesis.txt", "hint: choose an empty folder"}},
		{"data directory is a file", []string{"server", "--data-dir", file}, []string{file, "hint: choose a folder"}},
		{"data directory below a file", []string{"server", "--data-dir", filepath.Join(file, "x")}, []string{file, "hint: "}},
		{"data directory where none can be made", []string{"server", "--data-dir", os.DevNull + "/x"}, []string{os.DevNull, "hint: choose a folder"}},
		{"data directory of a name too long", []string{"server", "--data-dir", filepath.Join(dir, strings.Repeat("x", 300))}, []string{dir, "hint: choose a folder"}},
		{"run's data directory below a file", []string{"run", "--data-dir", filepath.Join(file, "x")}, []string{file, "hint: "}},
		{"nobody to ask for status", []string{"status", "--servers", nobody}, []string{nobody, "hint: "}},
		{"nobody of several to ask for status", []string{"status", "--servers", nobody + ",127.0.0.1:1"}, []string{nobody, "127.0.0.1:1", "hint: "}},
		{"nobody to list blocks", []string{"blocks", "--servers", nobody}, []string{nobody, "hint: "}},
		{"nobody to watch", []string{"watch", "--servers", nobody}, []string{nobody, "hint: "}},
		{"nobody to join", []string{"server", "--join", nobody, "--join-timeout", "100ms"}, []string{nobody, "hint: check the addresses of --join"}},
		{"empty environment", []string{"status"}, []string{"no server runs", "hint: "}},
		{"empty environment for the shell", []string{"env"}, []string{"no server runs", "hint: "}},
	} {
		t.Run(row.name, func(t *testing.T) {
			environment := filepath.Join(t.TempDir(), "environment")
			code, stdout, stderr := command(t, append(row.args, "--environment", environment)...)
			if code != exitFailed || !strings.HasPrefix(stderr, "raftmine: ") {
				t.Fatalf("exit code %d, said %q", code, stderr)
			}
			for _, part := range row.says {
				if !strings.Contains(stderr, part) {
					t.Errorf("said %q, without %q", stderr, part)
				}
			}
			if strings.Count(stderr, "\n") > 2 || stdout != "" {
				t.Errorf("said more than one line and a hint:\n%s%s", stdout, stderr)
			}
			if left, _ := filepath.Glob(filepath.Join(environment, "entries", "*.json")); len(left) != 0 {
				t.Errorf("left %v in the environment", left)
			}
			made, _ := filepath.Glob(filepath.Join(environment, "data", "*"))
			for _, path := range made { // a server that starts later takes it
				if has, err := raftnode.HasServer(path); err != nil || has {
					t.Errorf("%s belongs to a server: %t, %v", path, has, err)
				}
			}
		})
	}
	for path, want := range map[string]string{filepath.Join(foreign, "thesis.txt"): "mine", file: "a file"} {
		if content, err := os.ReadFile(path); err != nil || string(content) != want {
			t.Errorf("%s is now %q, %v", path, content, err)
		}
	}
	for path, want := range map[string]int{foreign: 1, dir: 2} {
		if left, err := os.ReadDir(path); err != nil || len(left) != want {
			t.Errorf("%s holds %v, %v", path, left, err)
		}
	}
}

// TestHintOfAStartFitsWhatFailed: one that does not is worse than none.
func TestHintOfAStartFitsWhatFailed(t *testing.T) {
	refused := fmt.Errorf("dial 127.0.0.1:1: %w", syscall.ECONNREFUSED)
	file := filepath.Join(t.TempDir(), "raft.db")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		err        error
		join, hint string
	}{
		{fmt.Errorf("%w: %w", raftnode.ErrNoAnswer, refused), "127.0.0.1:1", "check the addresses of --join, and that a server runs there"},
		{fmt.Errorf("%w: %w", raftnode.ErrNoAnswer, refused), "", ""}, // the environment named it
		{refused, "127.0.0.1:1", ""},
		{fmt.Errorf("%w: %w: nothing listens", raftnode.ErrNoAnswer, raftnode.ErrNotThere), "127.0.0.1:1",
			"name an address that the other servers reach with --advertise HOST:PORT"},
		{fmt.Errorf("data directory /proc/x %w: %w", raftnode.ErrUnusableDataDir, syscall.ENOENT), "", "choose a folder that this user may write with --data-dir DIR"},
		{fmt.Errorf("listen on 127.0.0.1:80: %w", syscall.EACCES), "", ""},
		{fmt.Errorf("open raft log: %w", &fs.PathError{Op: "open", Path: file, Err: syscall.EACCES}), "",
			fmt.Sprintf("let this user (uid %d) read and write %s: chmod u+rwX", os.Geteuid(), file)},
		{fmt.Errorf("publish: %w", &fs.PathError{Op: "open", Path: file + ".tmp", Err: syscall.EACCES}), "",
			fmt.Sprintf("let this user (uid %d) read and write %s: chmod u+rwX", os.Geteuid(), filepath.Dir(file))},
	} {
		o := serverOptions{join: row.join}
		if hint := hintFor(o.hintForStart(row.err)); hint != row.hint {
			t.Errorf("%v, --join %q: hint %q, want %q", row.err, row.join, hint, row.hint)
		}
	}
}

// TestAdvertisedAddressThatDoesNotLeadHere: whether nobody, a server of the group, or something else answers there, who joins is not taken, and changes nothing; the first server goes on, and says so.
func TestAdvertisedAddressThatDoesNotLeadHere(t *testing.T) {
	dir := keepOnFailure(t)
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	wrong := nobody.Addr().String()
	nobody.Close()
	environment := filepath.Join(dir, "environment")
	first := startProcess(t, "server", "--environment", environment, "--advertise", wrong)
	eventually(t, "the first server says that it is not found", func() string {
		said := first.errors()
		if !strings.Contains(said, "is not found at the address that it advertises") || !strings.Contains(said, wrong) {
			return fmt.Sprintf("it said %q", said)
		}
		return ""
	})
	other := filepath.Join(dir, "other")
	leader := startProcess(t, "server", "--environment", other, "-o", "json")
	started, _ := leader.waitEvent(0, "process_started")
	_, _ = leader.waitEvent(0, "leader")
	stranger := httptest.NewServer(http.NotFoundHandler()) // as of another machine
	defer stranger.Close()
	leads := started["address"].(string)
	for _, address := range []string{wrong, leads, stranger.Listener.Addr().String()} {
		code, stdout, stderr := command(t, "server", "--environment", filepath.Join(dir, "third"), "--join", leads,
			"--advertise", address, "--join-timeout", "5s") // longer than the leader waits for who does not answer
		if code != exitFailed || stdout != "" || !strings.HasPrefix(stderr, "raftmine: ") || strings.Count(stderr, "\n") != 2 ||
			!strings.Contains(stderr, address) || !strings.Contains(stderr, "\nhint: name an address that the other servers reach with --advertise") {
			t.Errorf("advertising %s: exit code %d, said %q", address, code, stderr)
		}
	}
	if view, problem := statusOf(t, other); problem != "" || len(view.Servers) != 1 {
		t.Errorf("the group has changed: %+v, %s", view.Servers, problem)
	}
}

// TestCommandsThatOnlyLookMakeNoEnvironment: a mistyped folder is named, and not made.
func TestCommandsThatOnlyLookMakeNoEnvironment(t *testing.T) {
	other := t.TempDir() // somebody's folder
	for _, args := range []string{"status", "watch", "blocks", "env", "server list", "server remove 1", "server transfer", "server recover"} {
		t.Run(args, func(t *testing.T) {
			missing := filepath.Join(t.TempDir(), "typo")
			for environment, says := range map[string]string{missing: "there is no such folder", other: "was ever started there"} {
				code, stdout, stderr := command(t, append(strings.Fields(args), "--environment", environment)...)
				first, rest, _ := strings.Cut(stderr, "\n")
				if code != exitFailed || stdout != "" || !strings.HasPrefix(first, "raftmine: ") || !strings.Contains(first, environment) ||
					!strings.Contains(first, says) || !strings.HasPrefix(rest, "hint: ") || strings.Count(stderr, "\n") != 2 {
					t.Errorf("exit code %d, said %q, printed %q", code, stderr, stdout)
				}
			}
			if left, err := os.ReadDir(filepath.Dir(missing)); err != nil || len(left) != 0 {
				t.Errorf("left %v behind (%v)", left, err)
			}
			if left, err := os.ReadDir(other); err != nil || len(left) != 0 {
				t.Errorf("laid %v into a folder that is no environment (%v)", left, err)
			}
		})
	}
}

func TestEnvironmentVariablesStandForFlags(t *testing.T) {
	t.Setenv("RAFTMINE_MINERS", "-7")
	if code, _, stderr := command(t, "run"); code != exitUsage || !strings.Contains(stderr, "--miners -7") ||
		!strings.HasSuffix(stderr, "\nhint: that is from the environment variable RAFTMINE_MINERS\n") {
		t.Errorf("exit code %d, said %q", code, stderr)
	}
	if code, _, stderr := command(t, "run", "--miners", "-8"); code != exitUsage || !strings.Contains(stderr, "--miners -8") ||
		strings.Contains(stderr, "RAFTMINE_MINERS") {
		t.Errorf("a flag does not win over its variable: exit code %d, said %q", code, stderr)
	}
	t.Setenv("RAFTMINE_MINERS", "many")
	if code, _, stderr := command(t, "run"); code != exitUsage || !strings.Contains(stderr, "RAFTMINE_MINERS") || strings.Contains(stderr, "strconv") {
		t.Errorf("exit code %d, said %q", code, stderr)
	}
	t.Setenv("RAFTMINE_LISTEN", "10.1.2.3:80")
	if code, _, stderr := command(t, "server"); code != exitUsage ||
		!strings.HasSuffix(stderr, "\nhint: that is from the environment variable RAFTMINE_LISTEN; use 127.0.0.1, or add --insecure on a network where every machine is trusted\n") {
		t.Errorf("a hint of its own is lost: exit code %d, said %q", code, stderr)
	}
	t.Setenv("RAFTMINE_WEB_SERVICE", "ftp://x")
	if code, _, stderr := command(t, "server", "--listen", "127.0.0.1:0"); code != exitUsage || !strings.HasPrefix(stderr, "raftmine: --web-service: ") ||
		!strings.Contains(stderr, "environment variable RAFTMINE_WEB_SERVICE") {
		t.Errorf("an error with a colon: exit code %d, said %q", code, stderr)
	}
}

// TestShellVariableOfEnvDoesNotBreakRun: RAFTMINE_SERVERS is a list of addresses for all commands but run, where
// --servers is a number.
func TestShellVariableOfEnvDoesNotBreakRun(t *testing.T) {
	t.Setenv("RAFTMINE_SERVERS", "127.0.0.1:7001,127.0.0.1:7002")
	if code, _, stderr := command(t, "run", "--miners", "-1"); code != exitUsage || !strings.Contains(stderr, "--miners -1") {
		t.Errorf("exit code %d, said %q", code, stderr)
	}
	t.Setenv("RAFTMINE_SERVERS", "0")
	if code, _, stderr := command(t, "run"); code != exitUsage || !strings.Contains(stderr, "--servers 0") {
		t.Errorf("exit code %d, said %q", code, stderr)
	}
	for _, neither := range []string{"three", "3 servers", "127.0.0.1:7001,x"} {
		t.Setenv("RAFTMINE_SERVERS", neither)
		if code, _, stderr := command(t, "run", "--miners", "-1"); code != exitUsage || !strings.Contains(stderr, "environment variable RAFTMINE_SERVERS") {
			t.Errorf("RAFTMINE_SERVERS=%s: exit code %d, said %q", neither, code, stderr)
		}
	}
}

// TestErrorsAreOneLineOfWhatCanBePrinted, whatever a name or another machine put into them.
func TestErrorsAreOneLineOfWhatCanBePrinted(t *testing.T) {
	for text, want := range map[string]string{
		"one":                             "one",
		"one\ntwo\n\nthree\n":             "one; two; three",
		"wiped \x1b[2K\rout \u202e\u0085": `wiped \x1b[2K\rout \u202e\u0085`,
		"größer \xff":                     "größer \uFFFD",
	} {
		if got := oneLine(text); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
	if _, _, stderr := command(t, "serve"); stderr != "raftmine: unknown command \"serve\" for \"raftmine\"\nhint: did you mean server?\n" {
		t.Errorf("a mistyped command: said %q", stderr)
	}
	code, _, stderr := command(t, "status", "--environment", filepath.Join(t.TempDir(), "a\nb\x1b[1m"))
	if code != exitFailed || strings.Count(stderr, "\n") != 2 || strings.Contains(stderr, "\x1b") {
		t.Errorf("exit code %d, said %q", code, stderr)
	}
}

func TestHelpAndVersionAreSaidWhateverElseIsGiven(t *testing.T) {
	for args, want := range map[string]string{
		"--help --environment x":    "Usage:",
		"--version --environment x": version,
		"run --help --miners 1":     "--block-time",
		"help server list":          "List the servers",
	} {
		if code, stdout, stderr := command(t, strings.Fields(args)...); code != exitDone || !strings.Contains(stdout, want) || stderr != "" {
			t.Errorf("%s: exit code %d, printed %q, said %q", args, code, stdout, stderr)
		}
	}
}

func TestShellCompletionCompletesCommands(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		code, stdout, stderr := command(t, "completion", shell)
		if code != exitDone || !strings.Contains(stdout, "raftmine") {
			t.Errorf("%s: exit code %d, %d bytes, said %q", shell, code, len(stdout), stderr)
		}
	}
	code, stdout, _ := command(t, "__complete", "web")
	if code != exitDone || !strings.Contains(stdout, "webservice") {
		t.Errorf("completing \"web\" gave %q", stdout)
	}
}
