// Command etcd is etcd and etcdctl in one static program: the name that it is called by chooses.
package main

import (
	"os"
	"path/filepath"

	"go.etcd.io/etcd/etcdctl/v3/ctlv3"
	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	if filepath.Base(os.Args[0]) == "etcdctl" {
		ctlv3.MustStart()
	} else {
		etcdmain.Main(os.Args)
	}
}
