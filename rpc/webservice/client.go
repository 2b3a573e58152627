package webservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode"

	"raftmine/raftnode/coordinator"
)

// Errors of a Client, beside ErrAnswer. After any of them the outcome of a submission is unknown.
var (
	// ErrTimeout: the request's deadline passed.
	ErrTimeout = errors.New("no complete answer in time")
	// ErrTooLarge: the answer is larger than MaxAnswer.
	ErrTooLarge = errors.New("answer too large")
	// ErrRedirect: the service sent the request elsewhere.
	ErrRedirect = errors.New("redirect refused")
)

// Defaults of a ClientConfig.
const (
	DefaultPoolName       = "raftmine"
	DefaultTimeout        = 5 * time.Second
	DefaultConnectTimeout = 2 * time.Second
)

const (
	// MaxAnswer is the largest answer that is read, in bytes after decompression; headers have the same limit (tuning).
	MaxAnswer = 64 << 10
	// MaxPoolName is the longest pool name in bytes.
	MaxPoolName = 64

	maxRedirects  = 3   // followed for one request (tuning)
	maxErrorBytes = 300 // of a network error's text (tuning)
)

// ClientConfig configures a Client. The zero value is ready for use.
type ClientConfig struct {
	// PoolName is sent with every submission. Empty means DefaultPoolName; at most MaxPoolName bytes.
	PoolName string
	// Timeout covers one request from connecting to the last byte. Zero means DefaultTimeout.
	Timeout time.Duration
	// ConnectTimeout covers the connection alone. Zero means DefaultConnectTimeout.
	ConnectTimeout time.Duration
}

// Validate reports a configuration that cannot work.
func (c ClientConfig) Validate() error {
	if len(c.PoolName) > MaxPoolName {
		return fmt.Errorf("pool name has %d bytes, want at most %d", len(c.PoolName), MaxPoolName)
	}
	if c.Timeout < 0 || c.ConnectTimeout < 0 {
		return errors.New("web service timeout is negative")
	}
	return nil
}

func (c ClientConfig) withDefaults() ClientConfig {
	if c.PoolName == "" {
		c.PoolName = DefaultPoolName
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = DefaultConnectTimeout
	}
	return c
}

// Client asks one block web service. It is safe for concurrent use and keeps no connection between requests.
type Client struct {
	config ClientConfig
	base   *url.URL
	http   http.Client
}

var _ coordinator.BlockSource = (*Client)(nil)

// NewClient returns a client of the service at base, for example "http://127.0.0.1:8080" or
// "https://pool.example/mining/". It does not connect.
func NewClient(base string, config ClientConfig) (*Client, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config = config.withDefaults()
	address, err := parseBase(base)
	if err != nil {
		shown := base
		if address, bad := url.Parse(base); bad == nil {
			shown = address.Redacted()
		} else if _, after, found := strings.Cut(base, "@"); found { // whatever it is, it may hold a password
			shown = "...@" + after
		}
		return nil, fmt.Errorf("web service address %s: %w", excerpt([]byte(shown)), err)
	}
	dialer := &net.Dialer{Timeout: config.ConnectTimeout}
	return &Client{
		config: config,
		base:   address,
		http: http.Client{
			CheckRedirect: checkRedirect,
			// Proxy stays nil and connections are not kept: doc.go says why.
			Transport: &http.Transport{
				DialContext:            dialer.DialContext,
				DisableKeepAlives:      true,
				TLSHandshakeTimeout:    config.Timeout,
				MaxResponseHeaderBytes: MaxAnswer,
			},
		},
	}, nil
}

// parseBase reads the address that the service's paths are appended to.
func parseBase(base string) (*url.URL, error) {
	address, err := url.Parse(base)
	if err != nil {
		// The *url.Error would repeat the address, password included.
		if parse, ok := errors.AsType[*url.Error](err); ok {
			err = parse.Err
		}
		return nil, err
	}
	switch {
	case address.Scheme != "http" && address.Scheme != "https", address.Hostname() == "":
		return nil, errors.New("want http://HOST[:PORT][/PATH] or https://HOST[:PORT][/PATH]")
	case address.RawQuery != "" || address.Fragment != "":
		return nil, errors.New("want no query and no fragment")
	}
	for _, script := range []string{requestPath, submitPath} {
		if strings.HasSuffix(address.Path, "/"+script) {
			return nil, fmt.Errorf("want the address without %s", script)
		}
	}
	address.Path = strings.TrimRight(address.Path, "/")
	address.RawPath = strings.TrimRight(address.RawPath, "/")
	return address, nil
}

// Address returns the base address without a password.
func (c *Client) Address() string { return c.base.Redacted() }

// Close drops what the client keeps. Requests under way go on.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// Block asks what is to be searched now.
func (c *Client) Block(ctx context.Context) (coordinator.Block, error) {
	address := c.base.JoinPath(requestPath)
	status, body, err := c.get(ctx, address)
	if err != nil {
		return coordinator.Block{}, err
	}
	if status/100 != 2 {
		return coordinator.Block{}, statusError(address, status, body)
	}
	block, err := parseBlock(body)
	if err != nil {
		return coordinator.Block{}, requestError(address, err)
	}
	return block, nil
}

// Submit hands a solution in, once. It returns an error when no verdict was had: the outcome is unknown.
func (c *Client) Submit(ctx context.Context, nonce, timestamp uint64) (coordinator.Reply, error) {
	address := c.base.JoinPath(submitPath)
	address.RawQuery = url.Values{
		"timestamp": {strconv.FormatUint(timestamp, 10)},
		"nonce":     {strconv.FormatUint(nonce, 10)},
		"poolname":  {c.config.PoolName},
	}.Encode()
	status, body, err := c.get(ctx, address)
	if err != nil {
		return coordinator.Reply{}, err
	}
	v, err := parseVerdict(body)
	switch {
	case err == nil:
		return coordinator.Reply{Accepted: v == verdictSuccess, Detail: string(v)}, nil
	case status/100 != 2:
		return coordinator.Reply{}, statusError(address, status, body)
	default:
		return coordinator.Reply{}, requestError(address, err)
	}
}

// get makes one request and reads its whole answer.
func (c *Client) get(ctx context.Context, address *url.URL) (status int, body []byte, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.config.Timeout, fmt.Errorf("%w (%s)", ErrTimeout, c.config.Timeout))
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), nil)
	if err != nil {
		return 0, nil, requestError(address, err)
	}
	request.Header.Set("User-Agent", "raftmine")
	request.Header.Set("Cache-Control", "no-cache")
	response, err := c.http.Do(request)
	if err != nil {
		return 0, nil, requestError(address, networkError(ctx, err))
	}
	defer response.Body.Close()
	// One byte more than allowed tells a full answer from one too large. The body is the decompressed one.
	body, err = io.ReadAll(io.LimitReader(response.Body, MaxAnswer+1))
	if len(body) > MaxAnswer {
		return 0, nil, requestError(address, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, MaxAnswer))
	}
	if err != nil {
		err = fmt.Errorf("answer cut off after %d bytes: %w", len(body), networkError(ctx, err))
		return 0, nil, requestError(address, err)
	}
	return response.StatusCode, body, nil
}

// checkRedirect allows a few redirects on the host that the operator named.
func checkRedirect(next *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("%w: more than %d in a row", ErrRedirect, maxRedirects)
	}
	first := via[0].URL
	if next.URL.Scheme != first.Scheme || hostPort(next.URL) != hostPort(first) {
		return fmt.Errorf("%w: it points to %s", ErrRedirect, excerpt([]byte(next.URL.Redacted())))
	}
	return nil
}

// hostPort returns the lower-case host and the port, also the scheme's own.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// requestError names what was asked for in front of err. The rest of the address stands beside it wherever it is shown.
func requestError(address *url.URL, err error) error {
	return fmt.Errorf("%s: %w", path.Base(address.Path), err)
}

func statusError(address *url.URL, status int, body []byte) error {
	err := fmt.Errorf("%w: HTTP status %d", ErrAnswer, status)
	if name := http.StatusText(status); name != "" {
		err = fmt.Errorf("%w (%s)", err, name)
	}
	if text := clean(body); len(text) > 0 {
		err = fmt.Errorf("%w: %s", err, excerpt(text))
	}
	return requestError(address, err)
}

// networkError makes one short line of what net/http returned.
func networkError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if outer, ok := errors.AsType[*url.Error](err); ok {
		err = outer.Err // it would repeat the address, with the query
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("connection closed without an answer: %w", err)
	}
	hidden := func(r rune) bool { return !unicode.IsPrint(r) }
	if len(err.Error()) > maxErrorBytes || strings.ContainsFunc(err.Error(), hidden) {
		return &shortError{err}
	}
	return err
}

// shortError is an error whose text holds what a peer sent: too long or not printable.
type shortError struct{ error }

func (e *shortError) Error() string { return excerpt([]byte(e.error.Error())) }
func (e *shortError) Unwrap() error { return e.error }
