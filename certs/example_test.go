package certs_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"github.com/depotctl/depot/certs"
)

// One lease, from two keys to one connection.
func ExampleAuthority() {
	// Each end makes its key where it is used, and sends a request.
	machineKey, _ := certs.NewKey()
	machineCSR, _ := machineKey.CSR()
	clientKey, _ := certs.NewKey()
	clientCSR, _ := clientKey.CSR()

	// The API server signs both, once.
	lease := certs.Lease{ID: "lse-one", Build: "bld-one", Project: "prj-one", Organization: "org-one"}
	authority, _ := certs.NewAuthority(lease, time.Now(), time.Now().Add(time.Hour))
	defer authority.Forget()
	machineLeaf, _ := authority.SignServer(machineCSR)
	clientLeaf, _ := authority.SignClient(clientCSR)
	clientPin, _ := certs.SPKI(clientCSR)
	_, err := authority.SignClient(clientCSR)
	fmt.Println("again:", err)

	// Each end accepts the other, and nobody else.
	server, _ := certs.ServerConfig(lease.ID, authority.CA(), machineLeaf, machineKey, clientPin)
	client, _ := certs.ClientConfig(lease.ID, authority.CA(), clientLeaf, clientKey)
	near, far := net.Pipe()
	go func() {
		conn := tls.Server(far, server)
		_, _ = conn.Write([]byte("built"))
		_ = conn.Close()
	}()
	conn := tls.Client(near, client)
	answer := make([]byte, 5)
	_, _ = conn.Read(answer)
	fmt.Println(string(answer), conn.ConnectionState().PeerCertificates[0].URIs[0])
	// Output:
	// again: sign certificate of the client of lease lse-one: the authority of this lease has signed this kind of certificate, or has forgotten its key
	// built depot://org-one/prj-one/bld-one/lse-one/machine
}
