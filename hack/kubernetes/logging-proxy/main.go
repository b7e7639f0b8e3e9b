// Passes HTTP requests on as they are and notes each as one line of JSON, before the client has the whole answer.
//
// As long as the folder HOLDS has a file named as a path in hexadecimal, requests for the path's bytes from the number in
// the file on wait.
//
//	logging-proxy LISTEN URL FILE HOLDS
package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

const holdPoll = 20 * time.Millisecond

type answer struct {
	http.ResponseWriter `json:"-"`

	Method string `json:"method"`
	Path   string `json:"path"`
	Range  string `json:"range,omitempty"`
	Status int    `json:"status"`
	Bytes  int64  `json:"bytes"`

	length int64
	file   *os.File
	once   sync.Once
}

func (a *answer) WriteHeader(status int) {
	if status >= 200 {
		a.Status = status
		length, err := strconv.ParseInt(a.Header().Get("Content-Length"), 10, 64)
		if err != nil {
			length = -1
		}
		a.length = length
		if length == 0 || a.Method == http.MethodHead {
			a.note()
		}
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(body []byte) (int, error) {
	a.Bytes += int64(len(body))
	if a.Bytes == a.length {
		a.note()
	}
	return a.ResponseWriter.Write(body)
}

func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *answer) note() {
	a.once.Do(func() {
		line, err := json.Marshal(a)
		if err == nil {
			_, err = a.file.Write(append(line, '\n'))
		}
		if err != nil {
			log.Print(err)
		}
	})
}

func isHeld(request *http.Request, holds string) bool {
	var start int64
	if _, err := fmt.Sscanf(request.Header.Get("Range"), "bytes=%d-", &start); err != nil {
		return false
	}
	text, err := os.ReadFile(filepath.Join(holds, hex.EncodeToString([]byte(request.URL.Path))))
	if err != nil {
		return false
	}
	from, err := strconv.ParseInt(string(text), 10, 64)
	return err == nil && start >= from
}

func waitWhileHeld(request *http.Request, holds string) {
	for isHeld(request, holds) {
		select {
		case <-request.Context().Done():
			return
		case <-time.After(holdPoll):
		}
	}
}

func main() {
	listen, behind, name, holds := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	target, err := url.Parse(behind)
	if err != nil {
		log.Fatal(err)
	}
	file, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		log.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(request *httputil.ProxyRequest) {
			request.SetURL(target)
			// What is signed stays as it came.
			request.Out.Host = request.In.Host
			request.Out.URL.RawQuery = request.In.URL.RawQuery
		},
		Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true},
	}
	log.Fatal(http.ListenAndServe(listen, http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
		noted := &answer{
			ResponseWriter: writer,
			Method:         request.Method,
			Path:           request.URL.Path,
			Range:          request.Header.Get("Range"),
			file:           file,
		}
		defer noted.note()
		waitWhileHeld(request, holds)
		proxy.ServeHTTP(noted, request)
	})))
}
