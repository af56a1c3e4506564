"""What `tumorscan doctor` looks at, one file a subject."""
