package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"raftmine/raftnode/coordinator"
	"raftmine/raftnode/registry"
	"raftmine/rpc/webservice"
)

// localSource is the block web service that the local environment names at the time of each call: it may start after
// the server, and come back at another port.
type localSource struct {
	env *registry.Environment

	mu     sync.Mutex
	client *webservice.Client // nil: none was found yet
}

// find returns a client of the web service that is registered now.
func (s *localSource) find() (*webservice.Client, error) {
	entries, unread := s.env.Entries()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, entry := range entries {
		if entry.Role != registry.RoleWebService {
			continue
		}
		if s.client != nil && s.client.Address() == entry.Address {
			return s.client, nil
		}
		client, err := webservice.NewClient(entry.Address, webservice.ClientConfig{})
		if err != nil {
			return nil, err
		}
		if s.client != nil {
			err = s.client.Close()
		}
		s.client = client
		return client, err
	}
	switch {
	case unread == nil:
		return nil, errNoWebService
	case s.client != nil: // its entry may be what cannot be read
		return s.client, nil
	}
	return nil, fmt.Errorf("no block web service is known: %w", unread)
}

var errNoWebService = errors.New(`no block web service is known: start "raftmine webservice", or give --web-service URL`)

// Block implements coordinator.BlockSource.
func (s *localSource) Block(ctx context.Context) (coordinator.Block, error) {
	client, err := s.find()
	if err != nil {
		return coordinator.Block{}, err
	}
	return client.Block(ctx)
}

// Submit implements coordinator.BlockSource.
func (s *localSource) Submit(ctx context.Context, nonce, timestamp uint64) (coordinator.Reply, error) {
	client, err := s.find()
	if err != nil {
		return coordinator.Reply{}, err
	}
	return client.Submit(ctx, nonce, timestamp)
}

// Address implements coordinator.BlockSource.
func (s *localSource) Address() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == nil {
		return fmt.Sprintf("(none in %s)", s.env.Dir())
	}
	return s.client.Address()
}

// Close frees the connections.
func (s *localSource) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == nil {
		return nil
	}
	return s.client.Close()
}
