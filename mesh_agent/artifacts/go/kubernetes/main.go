// Command kubernetes is all of Kubernetes in one static program: the name that it is called by chooses the component.
//
// The seven programs share nearly all of their code, so one of them is a quarter of the size of the seven together.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // kubectl's ways to log in
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"          // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // metrics of the client library
	_ "k8s.io/component-base/metrics/prometheus/version"  // kubernetes_build_info
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"

	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubeadm "k8s.io/kubernetes/cmd/kubeadm/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// command makes the component's command line, or nil for a name that is none of them. A component is made only when it is
// asked for: each installs a signal handler of its own, and a second one panics.
func command(name string) *cobra.Command {
	switch name {
	case "kube-apiserver":
		return apiserver.NewAPIServerCommand()
	case "kube-controller-manager":
		return controllermanager.NewControllerManagerCommand()
	case "kube-scheduler":
		return scheduler.NewSchedulerCommand()
	case "kube-proxy":
		return proxy.NewProxyCommand()
	case "kubelet":
		return kubelet.NewKubeletCommand(context.Background())
	case "kubectl":
		return kubectl.NewDefaultKubectlCommand()
	}
	return nil
}

var names = []string{"kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubeadm", "kubectl", "kubelet"}

func main() {
	// `kubernetes kubelet ...` is the same as calling a link named kubelet.
	if len(os.Args) > 1 && slices.Contains(names, os.Args[1]) && !slices.Contains(names, filepath.Base(os.Args[0])) {
		os.Args = os.Args[1:]
	}
	name := filepath.Base(os.Args[0])
	if name == "kubeadm" { // the only one that runs itself
		if err := kubeadm.Run(); err != nil {
			os.Exit(1)
		}
		return
	}
	component := command(name)
	if component == nil {
		fmt.Fprintf(os.Stderr, "%s: call this program through a link named %s\n", name, strings.Join(names, ", "))
		os.Exit(2)
	}
	if name == "kubectl" {
		kubectlutil.CheckErr(cli.RunNoErrOutput(component)) // prints errors the way kubectl does, and chooses the exit code
		return
	}
	os.Exit(cli.Run(component))
}
