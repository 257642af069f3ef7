// Package docs holds no code: its test compares what the Markdown files of the repository say with what is true.
package docs
