"""What the editor shows when a language is chosen: a short program that prints something and reads its input."""

from collections.abc import Mapping

from stockade.engine import Language

__all__ = ["EXAMPLES", "example_of"]


def example_of(language: Language) -> str:
    """A program to begin with; of languages that have none here, the one that the language's own file has."""
    own = EXAMPLES.get(language.name)
    return own if own is not None else language.examples["hello"].code


EXAMPLES: Mapping[str, str] = {
    "bash": """\
echo "Hello from bash $BASH_VERSION"

n=0
while IFS= read -r line; do
  n=$((n + 1))
  echo "$n: $line"
done
""",
    "c": """\
#include <stdio.h>

int main(void) {
    char line[256];

    puts("Hello from C");
    for (int n = 1; fgets(line, sizeof line, stdin); n++)
        printf("%d: %s", n, line);
    return 0;
}
""",
    "cpp": """\
#include <iostream>
#include <string>

int main() {
    std::cout << "Hello from C++\\n";
    std::string line;
    for (int n = 1; std::getline(std::cin, line); ++n)
        std::cout << n << ": " << line << '\\n';
}
""",
    "csharp": """\
using System;

class Program {
    static void Main() {
        Console.WriteLine("Hello from C#");
        string line;
        for (int n = 1; (line = Console.ReadLine()) != null; n++)
            Console.WriteLine(n + ": " + line);
    }
}
""",
    "go": """\
package main

import (
	"bufio"
	"fmt"
	"os"
)

func main() {
	fmt.Println("Hello from Go")
	lines := bufio.NewScanner(os.Stdin)
	for n := 1; lines.Scan(); n++ {
		fmt.Printf("%d: %s\\n", n, lines.Text())
	}
}
""",
    "haskell": """\
main :: IO ()
main = do
  putStrLn "Hello from Haskell"
  input <- getContents
  mapM_ putStrLn [show n ++ ": " ++ line | (n, line) <- zip [1 :: Int ..] (lines input)]
""",
    "java": """\
import java.util.Scanner;

public class Main {
    public static void main(String[] args) {
        System.out.println("Hello from Java " + System.getProperty("java.version"));
        Scanner lines = new Scanner(System.in);
        for (int n = 1; lines.hasNextLine(); n++) {
            System.out.println(n + ": " + lines.nextLine());
        }
    }
}
""",
    "kotlin": """\
fun main() {
    println("Hello from Kotlin")
    generateSequence(::readLine).forEachIndexed { n, line -> println("${n + 1}: $line") }
}
""",
    "lua": """\
print("Hello from " .. _VERSION)

local n = 0
for line in io.lines() do
  n = n + 1
  print(n .. ": " .. line)
end
""",
    "node": """\
const readline = require("node:readline");

console.log(`Hello from Node.js ${process.version}`);

let n = 0;
readline.createInterface({ input: process.stdin }).on("line", (line) => {
  n += 1;
  console.log(`${n}: ${line}`);
});
""",
    "ocaml": """\
let () =
  print_endline "Hello from OCaml";
  try
    let n = ref 0 in
    while true do
      let line = input_line stdin in
      incr n;
      Printf.printf "%d: %s\\n" !n line
    done
  with End_of_file -> ()
""",
    "perl": """\
use strict;
use warnings;

print "Hello from Perl $^V\\n";
while (my $line = <STDIN>) {
    print "$.: $line";
}
""",
    "php": """\
<?php
echo "Hello from PHP ", PHP_VERSION, "\\n";

for ($n = 1; ($line = fgets(STDIN)) !== false; $n++) {
    echo "$n: $line";
}
""",
    "python": """\
import sys

print(f"Hello from Python {sys.version.split()[0]}")

for n, line in enumerate(sys.stdin, start=1):
    print(f"{n}: {line}", end="")
""",
    "r": """\
cat("Hello from", R.version.string, "\\n")

lines <- readLines(file("stdin"))
for (n in seq_along(lines)) cat(n, ": ", lines[n], "\\n", sep = "")
""",
    "ruby": """\
puts "Hello from Ruby #{RUBY_VERSION}"

$stdin.each_line.with_index(1) do |line, n|
  puts "#{n}: #{line}"
end
""",
    "rust": """\
use std::io::{self, BufRead};

fn main() {
    println!("Hello from Rust");
    for (n, line) in io::stdin().lock().lines().enumerate() {
        println!("{}: {}", n + 1, line.unwrap());
    }
}
""",
    "typescript": """\
import * as readline from "node:readline";

const greeting: string = "Hello from TypeScript";
console.log(greeting);

let n = 0;
readline.createInterface({ input: process.stdin }).on("line", (line: string) => {
  n += 1;
  console.log(`${n}: ${line}`);
});
""",
}
