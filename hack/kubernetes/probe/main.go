// What tests run in pods: serves HTTP and prints each path that was asked for, or prints what URLs answer.
//
//	probe serve ADDRESS
//	probe get URL...
package main

import (
	"fmt"
	"io"
	"log"
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
		client := http.Client{Timeout: 10 * time.Second}
		for _, url := range os.Args[2:] {
			answer, err := client.Get(url)
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
