// kstatus tells what Flux and other users of kstatus make of Kubernetes objects, by its own library: a JSON list of objects
// on stdin, a line with the verdict of each on stdout.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

func main() {
	log.SetFlags(0)
	var objects []unstructured.Unstructured
	if err := json.NewDecoder(os.Stdin).Decode(&objects); err != nil {
		log.Fatal(err)
	}
	for _, object := range objects {
		verdict, err := status.Compute(&object)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(verdict.Status)
	}
}
