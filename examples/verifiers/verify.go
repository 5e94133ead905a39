// Checks a mesh ledger's proofs with golang.org/x/mod (sumdb/note, sumdb/tlog) and nothing of the mesh.
//
//	verify proof VKEY ORIGIN FILE.tlog-proof       an entry stands in a signed tree
//	verify consistency VKEY ORIGIN OLD NEW PATH    OLD's tree is the beginning of NEW's; PATH has a hash a line
//	verify tiles VKEY ORIGIN FOLDER                FOLDER/checkpoint, tiles and entries are one tree
//	verify grown VKEY ORIGIN OLD FOLDER            OLD's tree is the beginning of FOLDER's, shown by its tiles
//	verify -                                       the same, one JSON array of arguments a line on stdin
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "-" {
		lines := bufio.NewScanner(os.Stdin)
		for lines.Scan() {
			var arguments []string
			err := json.Unmarshal(lines.Bytes(), &arguments)
			if err == nil {
				err = check(arguments)
			}
			answer(err)
		}
		return
	}
	if err := check(os.Args[1:]); err != nil {
		answer(err)
		os.Exit(1)
	}
	answer(nil)
}

func answer(err error) {
	if err != nil {
		fmt.Println("refused:", strings.ReplaceAll(err.Error(), "\n", " "))
	} else {
		fmt.Println("ok")
	}
}

func check(a []string) error {
	switch {
	case len(a) == 4 && a[0] == "proof":
		return proof(a[1], a[2], a[3])
	case len(a) == 6 && a[0] == "consistency":
		return consistency(a[1], a[2], a[3], a[4], a[5])
	case len(a) == 4 && a[0] == "tiles":
		return tiles(a[1], a[2], a[3])
	case len(a) == 5 && a[0] == "grown":
		return grown(a[1], a[2], a[3], a[4])
	}
	return errors.New("usage: verify proof|consistency|tiles|grown VKEY ORIGIN ...")
}

// open gives the tree of a signed checkpoint of this key and origin.
func open(vkey, origin string, signed []byte) (tree tlog.Tree, err error) {
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return tree, err
	}
	opened, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return tree, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) < 4 || lines[0] != origin {
		return tree, fmt.Errorf("checkpoint is of %q, not of %q", lines[0], origin)
	}
	if tree.N, err = strconv.ParseInt(lines[1], 10, 64); err != nil {
		return tree, err
	}
	tree.Hash, err = tlog.ParseHash(lines[2])
	return tree, err
}

func openFile(vkey, origin, path string) (tree tlog.Tree, err error) {
	signed, err := os.ReadFile(path)
	if err != nil {
		return tree, err
	}
	return open(vkey, origin, signed)
}

func hashes(lines []string) (path []tlog.Hash, err error) {
	for _, line := range lines {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return nil, err
		}
		path = append(path, hash)
	}
	return path, nil
}

func proof(vkey, origin, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, signed, found := strings.Cut(string(data), "\n\n")
	lines := strings.Split(head, "\n")
	if !found || len(lines) < 3 || lines[0] != "c2sp.org/tlog-proof@v1" || !strings.HasPrefix(lines[1], "extra ") ||
		!strings.HasPrefix(lines[2], "index ") {
		return errors.New("not a tlog-proof with its entry")
	}
	entry, err := base64.StdEncoding.DecodeString(lines[1][6:])
	if err != nil {
		return err
	}
	index, err := strconv.ParseInt(lines[2][6:], 10, 64)
	if err != nil {
		return err
	}
	siblings, err := hashes(lines[3:])
	if err != nil {
		return err
	}
	tree, err := open(vkey, origin, []byte(signed))
	if err != nil {
		return err
	}
	return tlog.CheckRecord(siblings, tree.N, tree.Hash, index, tlog.RecordHash(entry))
}

func consistency(vkey, origin, oldPath, newPath, pathFile string) error {
	before, err := openFile(vkey, origin, oldPath)
	if err != nil {
		return err
	}
	now, err := openFile(vkey, origin, newPath)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(pathFile)
	if err != nil {
		return err
	}
	path, err := hashes(strings.Fields(string(data)))
	if err != nil {
		return err
	}
	return tlog.CheckTree(path, now.N, now.Hash, before.N, before.Hash)
}

// folder reads tiles of c2sp.org/tlog-tiles; its paths lack x/mod's fixed height.
type folder string

func (f folder) Height() int                             { return 8 }
func (f folder) SaveTiles(tiles []tlog.Tile, _ [][]byte) {}
func (f folder) ReadTiles(tiles []tlog.Tile) (data [][]byte, err error) {
	for _, tile := range tiles {
		path := strings.Replace(tile.Path(), "tile/8/", "tile/", 1)
		content, err := os.ReadFile(filepath.Join(string(f), path))
		if err != nil {
			return nil, err
		}
		if len(content) != tile.W*tlog.HashSize {
			return nil, fmt.Errorf("%s has %d bytes", path, len(content))
		}
		data = append(data, content)
	}
	return data, nil
}

// tiles checks that every entry of the folder is in its tree, in order, and that there are no more or fewer.
func tiles(vkey, origin, dir string) error {
	tree, err := openFile(vkey, origin, filepath.Join(dir, "checkpoint"))
	if err != nil {
		return err
	}
	if tree.N == 0 {
		return nil
	}
	reader := tlog.TileHashReader(tree, folder(dir))
	var indexes []int64
	var records []tlog.Hash
	for start := int64(0); start < tree.N; start += 256 {
		width := tree.N - start
		if width > 256 {
			width = 256
		}
		tile := tlog.Tile{H: 8, L: 0, N: start / 256, W: int(width)}
		path := strings.Replace(tile.Path(), "tile/8/0/", "tile/entries/", 1)
		content, err := os.ReadFile(filepath.Join(dir, path))
		if err != nil {
			return err
		}
		for at := int64(0); at < width; at++ {
			if len(content) < 2 || len(content) < 2+int(binary.BigEndian.Uint16(content)) {
				return fmt.Errorf("%s ends early", path)
			}
			end := 2 + int(binary.BigEndian.Uint16(content))
			records = append(records, tlog.RecordHash(content[2:end]))
			indexes = append(indexes, tlog.StoredHashIndex(0, start+at))
			content = content[end:]
		}
		if len(content) != 0 {
			return fmt.Errorf("%s has more than %d entries", path, width)
		}
	}
	stored, err := reader.ReadHashes(indexes)
	if err != nil {
		return err
	}
	for at := range stored {
		if stored[at] != records[at] {
			return fmt.Errorf("entry %d is not the one in the tree", at)
		}
	}
	return nil
}

func grown(vkey, origin, oldPath, dir string) error {
	before, err := openFile(vkey, origin, oldPath)
	if err != nil {
		return err
	}
	now, err := openFile(vkey, origin, filepath.Join(dir, "checkpoint"))
	if err != nil {
		return err
	}
	path, err := tlog.ProveTree(now.N, before.N, tlog.TileHashReader(now, folder(dir)))
	if err != nil {
		return err
	}
	return tlog.CheckTree(path, now.N, now.Hash, before.N, before.Hash)
}
