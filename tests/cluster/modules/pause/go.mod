module lmd.test/pause

go 1.26.0
