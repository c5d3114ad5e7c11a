//! The guest's long-lived programs.
//!
//! Each program repeatedly reads a script in its own language from the pipe `/run/lab/NAME.in` up
//! to its end, runs the script, and writes `done` or an error, on one line, to `/run/lab/NAME.out`.
//! A clone can thus use warm memory in ways that need not be known when the guest is made.

/// A simple database server, called `python`. It imports many modules, builds and queries a
/// database that it keeps open (`db`), and has a large heap of small objects (`heap`).
pub(crate) const PYTHON_DATABASE: &str = r"
import argparse, collections, csv, ctypes, datetime, decimal, email, hashlib, html, json, random
import os, sqlite3, ssl, tempfile, unittest, urllib.request, xml.dom.minidom, zipfile
random.seed(1)
db = sqlite3.connect('/var/lib/lab.db')
db.execute('create table item (id integer primary key, name text, price real, note text)')
db.executemany('insert into item (name, price, note) values (?, ?, ?)',
    ((f'item {n}', random.random(), 'x' * random.randrange(200)) for n in range(40000)))
db.execute('create index by_name on item (name)')
db.commit()
kept = db.execute('select name, price from item order by price limit 5000').fetchall()
heap = [{'number': n, 'text': f'object {n}', 'next': [n, n + 1]} for n in range(40000)]
os.makedirs('/run/lab', exist_ok=True)
os.mkfifo('/run/lab/python.in')
os.mkfifo('/run/lab/python.out')
print('ready', flush=True)
while True:
    with open('/run/lab/python.in') as pipe:
        request = pipe.read()
    try:
        exec(request, globals())
        answer = 'done'
    except Exception as error:
        answer = repr(error)
    with open('/run/lab/python.out', 'w') as pipe:
        print(answer, file=pipe)
";

/// A process with a large heap (`%words`), called `perl`.
pub(crate) const PERL_OBJECTS: &str = r#"
use strict; use warnings; use POSIX (); $| = 1;
our %words = map { ("word$_" => [ map { $_ * 2 } 1 .. 8 ]) } 1 .. 15000;
mkdir '/run/lab';
POSIX::mkfifo("/run/lab/perl.$_", 0600) or die "mkfifo: $!" for 'in', 'out';
print "ready\n";
while (1) {
    open(my $in, '<', '/run/lab/perl.in') or die "in: $!";
    my $request = do { local $/; <$in> };
    close $in;
    my $answer = defined eval("$request; 1") ? 'done' : $@ =~ s/\n/ /gr;
    open(my $out, '>', '/run/lab/perl.out') or die "out: $!";
    print $out "$answer\n";
    close $out;
}
"#;
