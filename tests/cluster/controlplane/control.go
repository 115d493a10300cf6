package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

const (
	// orderPatience bounds an order and its answer: a stop and a start at their slowest.
	orderPatience = stopPatience + readyPatience + 15*time.Second
	// helloPatience bounds what a client may take to say what it wants.
	helloPatience = 5 * time.Second
)

// order is what `headway-cluster restart` and its like ask of a supervisor, one a connection, as JSON.
type order struct {
	// Action is start, stop or restart.
	Action    string `json:"action"`
	Component string `json:"component"`
	answer    chan error
}

type orderAnswer struct {
	// Error is empty where the order was carried out.
	Error string `json:"error"`
}

// controlServer takes orders one at a time.
type controlServer struct {
	listener net.Listener
	orders   chan order
	closed   chan struct{}
}

func listenForControl(at layout) (*controlServer, error) {
	listener, err := net.Listen("unix", at.socket())
	if err != nil {
		return nil, fmt.Errorf("listening for orders: %w", err)
	}
	// The directory is the user's alone already.
	if err := os.Chmod(at.socket(), 0o600); err != nil {
		return nil, fmt.Errorf("listening for orders: %w", err)
	}
	server := &controlServer{listener, make(chan order), make(chan struct{})}
	go server.accept()
	return server, nil
}

func (s *controlServer) accept() {
	for {
		connection, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.handle(connection)
	}
}

func (s *controlServer) handle(connection net.Conn) {
	defer connection.Close()
	// An error here shows at the next read.
	_ = connection.SetReadDeadline(time.Now().Add(helloPatience))
	taken := order{answer: make(chan error, 1)}
	err := json.NewDecoder(connection).Decode(&taken)
	if err == nil {
		err = s.pass(taken)
	}
	var answer orderAnswer
	if err != nil {
		answer.Error = err.Error()
	}
	// A client that went away needs no answer.
	_ = json.NewEncoder(connection).Encode(answer)
}

func (s *controlServer) pass(taken order) error {
	switch taken.Action {
	case "start", "stop", "restart":
	default:
		return fmt.Errorf("unknown action %q", taken.Action)
	}
	select {
	case s.orders <- taken:
		return <-taken.answer
	case <-s.closed:
		return errors.New("the cluster is ending")
	}
}

func (s *controlServer) close() {
	close(s.closed)
	s.listener.Close()
}

// command sends an order and waits until it is carried out.
func command(at layout, action, component string) error {
	connection, err := net.Dial("unix", at.socket())
	if err != nil {
		if !at.isUp() {
			return fmt.Errorf("no cluster is up in %s", at.dir)
		}
		return fmt.Errorf("asking the supervisor (the cluster may still be starting): %w", err)
	}
	defer connection.Close()
	if err := connection.SetDeadline(time.Now().Add(orderPatience)); err != nil {
		return fmt.Errorf("asking the supervisor: %w", err)
	}
	if err := json.NewEncoder(connection).Encode(order{Action: action, Component: component}); err != nil {
		return fmt.Errorf("asking the supervisor: %w", err)
	}
	var answer orderAnswer
	if err := json.NewDecoder(connection).Decode(&answer); err != nil {
		return fmt.Errorf("waiting for the supervisor's answer: %w", err)
	}
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	return nil
}
