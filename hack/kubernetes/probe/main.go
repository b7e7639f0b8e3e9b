// What tests run in pods: serves HTTP and prints each path that was asked for, or prints what URLs answer.
//
//	probe serve ADDRESS
//	probe get URL...
package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"
)

func main() {
	log.SetFlags(0)
	switch os.Args[1] {
	case "serve":
		log.Fatal(http.ListenAndServe(os.Args[2], http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
			fmt.Println("asked for", request.URL.Path)
			name, _ := os.Hostname()
			fmt.Fprintln(writer, "here is", name)
		})))
	case "get":
		for _, url := range os.Args[2:] {
			answer, err := get(url)
			if err != nil {
				log.Fatal(err)
			}
			body, err := io.ReadAll(answer.Body)
			if err != nil {
				log.Fatal(err)
			}
			fmt.Printf("%s %s", answer.Status, body)
			answer.Body.Close()
		}
	default:
		log.Fatal("usage: probe serve ADDRESS | get URL...")
	}
}

// get asks again for some seconds while there is a name but nobody answers: a Service is reached a moment after it is
// made, when the node's packet filter knows of it.
func get(url string) (*http.Response, error) {
	client := http.Client{Timeout: 10 * time.Second}
	deadline := time.Now().Add(10 * time.Second)
	for {
		answer, err := client.Get(url)
		var unknown *net.DNSError
		if err == nil || errors.As(err, &unknown) || time.Now().After(deadline) {
			return answer, err
		}
		time.Sleep(100 * time.Millisecond)
	}
}
