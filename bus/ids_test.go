package bus

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// anID is an identifier with the function that checks it.
type anID struct {
	prefix   string
	fresh    func() string
	validate func(string) error
}

func idOf[T interface {
	~string
	Message
}](prefix string, fresh func() T) anID {
	return anID{prefix, func() string { return string(fresh()) }, func(s string) error { return T(s).Validate() }}
}

func allIDs() []anID {
	return []anID{
		idOf("org", NewOrganizationID), idOf("prj", NewProjectID), idOf("con", NewConnectionID), idOf("bld", NewBuildID),
		idOf("lse", NewLeaseID), idOf("mch", NewMachineID), idOf("vol", NewVolumeID), idOf("tok", NewTokenID),
	}
}

func TestIDs_AreTheirOwnKindOnly(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for i, id := range allIDs() {
		for range 100 {
			s := id.fresh()
			require.False(t, seen[s], "%s was made twice", s)
			seen[s] = true
			require.True(t, strings.HasPrefix(s, id.prefix+"-"))
			for j, other := range allIDs() {
				require.Equal(t, i == j, other.validate(s) == nil, "%s as %s", s, other.prefix)
			}
		}
	}
}

func TestIDs_RefuseWhatCouldLeaveItsToken(t *testing.T) {
	t.Parallel()
	for _, id := range allIDs() {
		good := id.fresh()
		for _, bad := range []string{
			"", id.prefix, id.prefix + "-", good + "a", good[:len(good)-1], good + "\n", " " + good, good[:len(good)-1] + ".", good[:len(good)-1] + "*",
			good[:len(good)-1] + ">", good[:len(good)-1] + "1", good[:len(good)-1] + "_", strings.ToUpper(good), strings.Replace(good, "-", ".", 1), good[:len(good)-2] + "é",
		} {
			require.Error(t, id.validate(bad), "%q", bad)
		}
	}
}

func TestValidateName_TakesDNSLabels(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"a", "0", "a-b", "web-2", strings.Repeat("a", 63)} {
		require.NoError(t, ValidateName(good), good)
	}
	for _, bad := range []string{"", "-", "-a", "a-", "A", "a.b", "a b", "a_b", "a\n", "é", "*", strings.Repeat("a", 64)} {
		require.Error(t, ValidateName(bad), "%q", bad)
	}
}
