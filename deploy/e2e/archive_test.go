package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// untar returns the regular files of an archive by name.
func untar(t testing.TB, archive string) map[string]string {
	t.Helper()
	files := map[string]string{}
	for r := tar.NewReader(strings.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		require.NoError(t, err)
		if h.Typeflag != tar.TypeReg {
			continue
		}
		text, err := io.ReadAll(r)
		require.NoError(t, err)
		files[h.Name] = string(text)
	}
}

// totar makes an archive of pairs of name and content.
func totar(t testing.TB, files ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for i := 0; i < len(files); i += 2 {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1]))}))
		_, err := w.Write([]byte(files[i+1]))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return out.Bytes()
}

// descriptor is the part of an OCI descriptor that is followed here.
type descriptor struct {
	MediaType   string
	Digest      string
	Annotations map[string]string
	Platform    struct{ Architecture string }
}

// imageConfig is the part of an image's configuration that is looked at here.
type imageConfig struct {
	Architecture string
	Config       struct{ Labels map[string]string }
}

// ociConfig follows an OCI archive's index to its first image's configuration.
func ociConfig(t testing.TB, archive string) imageConfig {
	t.Helper()
	files := untar(t, archive)
	digest := ""
	var index struct{ Manifests []descriptor }
	decode(t, files["index.json"], &index)
	for digest == "" {
		require.NotEmpty(t, index.Manifests)
		blob := files["blobs/"+strings.Replace(index.Manifests[0].Digest, ":", "/", 1)]
		var next struct {
			Manifests []descriptor
			Config    descriptor
		}
		decode(t, blob, &next)
		index.Manifests, digest = next.Manifests, next.Config.Digest
	}
	var config imageConfig
	decode(t, files["blobs/"+strings.Replace(digest, ":", "/", 1)], &config)
	return config
}

func decode(t testing.TB, text string, into any) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(text), into), text)
}
