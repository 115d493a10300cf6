package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
)

// crdsPatience bounds the wait until definitions are served.
const crdsPatience = time.Minute

var crdResource = apiextensionsv1.SchemeGroupVersion.WithResource("customresourcedefinitions")

// applyCRDs applies custom resource definitions and waits until each is served.
func applyCRDs(ctx context.Context, at layout, definitions []*unstructured.Unstructured) error {
	config, err := clientConfig(at)
	if err != nil {
		return err
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	for _, definition := range definitions {
		_, err := client.Resource(crdResource).Apply(ctx, definition.GetName(), definition,
			metav1.ApplyOptions{FieldManager: "headway-cluster", Force: true})
		if err != nil {
			return fmt.Errorf("applying custom resource definition %s: %w", definition.GetName(), err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, crdsPatience)
	defer cancel()
	for _, definition := range definitions {
		if err := awaitEstablished(ctx, client, definition.GetName()); err != nil {
			return err
		}
	}
	return nil
}

func awaitEstablished(ctx context.Context, client dynamic.Interface, name string) error {
	for {
		object, err := client.Resource(crdResource).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("waiting for custom resource definition %s: %w", name, err)
		}
		var read apiextensionsv1.CustomResourceDefinition
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &read); err != nil {
			return fmt.Errorf("reading custom resource definition %s: %w", name, err)
		}
		for _, condition := range read.Status.Conditions {
			if condition.Status != apiextensionsv1.ConditionTrue {
				continue
			}
			switch condition.Type {
			case apiextensionsv1.Established:
				return nil
			case apiextensionsv1.NonStructuralSchema:
				return fmt.Errorf("custom resource definition %s: %s", name, condition.Message)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("custom resource definition %s is not established: %w", name, ctx.Err())
		case <-time.After(probePause):
		}
	}
}

// readCRDs reads every custom resource definition in the files and directories. Other objects in them are passed
// over: folders of definitions hold policies and the like as well.
func readCRDs(paths []string) ([]*unstructured.Unstructured, error) {
	var definitions []*unstructured.Unstructured
	for _, path := range paths {
		files, err := manifests(path)
		if err != nil {
			return nil, err
		}
		before := len(definitions)
		for _, file := range files {
			found, err := readCRDFile(file)
			if err != nil {
				return nil, err
			}
			definitions = append(definitions, found...)
		}
		if len(definitions) == before {
			return nil, fmt.Errorf("--crds %s: no custom resource definition there", path)
		}
	}
	return definitions, nil
}

// manifests are the file itself or, sorted, those of a directory.
func manifests(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("--crds: %w", err)
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("--crds: %w", err)
	}
	var files []string
	for _, entry := range entries {
		name := strings.ToLower(entry.Name())
		if strings.HasSuffix(name, ".yaml") || strings.HasSuffix(name, ".yml") || strings.HasSuffix(name, ".json") {
			files = append(files, filepath.Join(path, entry.Name()))
		}
	}
	sort.Strings(files)
	return files, nil
}

func readCRDFile(path string) ([]*unstructured.Unstructured, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--crds: %w", err)
	}
	var definitions []*unstructured.Unstructured
	documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return definitions, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", path, err)
		}
		asJSON, err := yaml.ToJSON(document)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", path, err)
		}
		object := map[string]any{}
		if err := json.Unmarshal(asJSON, &object); err != nil {
			return nil, fmt.Errorf("reading %s: %w", path, err)
		}
		if object["kind"] != "CustomResourceDefinition" {
			continue
		}
		// Generators leave an empty status, which is not for clients to set.
		delete(object, "status")
		definition := &unstructured.Unstructured{Object: object}
		if definition.GetName() == "" {
			return nil, fmt.Errorf("reading %s: a custom resource definition without a name", path)
		}
		definitions = append(definitions, definition)
	}
}
