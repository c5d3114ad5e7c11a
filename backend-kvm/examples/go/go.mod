module kaleidoscope.example/serve

go 1.19
