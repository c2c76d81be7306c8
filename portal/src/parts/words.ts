/** Splits a command line into arguments as a shell would, without expanding anything. */

export class UnfinishedQuote extends Error {
  constructor(quote: string) {
    super(`The command has an opening ${quote} without a closing one.`);
  }
}

export function splitWords(line: string): string[] {
  const words: string[] = [];
  let word: string | null = null;
  let quote = "";
  for (let at = 0; at < line.length; at += 1) {
    const letter = line.charAt(at);
    if (quote !== "" && letter === quote) {
      quote = "";
    } else if (letter === "\\" && quote !== "'" && at + 1 < line.length) {
      at += 1;
      word = (word ?? "") + line.charAt(at);
    } else if (quote === "" && (letter === "'" || letter === '"')) {
      quote = letter;
      word ??= "";
    } else if (quote === "" && /\s/.test(letter)) {
      if (word !== null) {
        words.push(word);
      }
      word = null;
    } else {
      word = (word ?? "") + letter;
    }
  }
  if (quote !== "") {
    throw new UnfinishedQuote(quote);
  }
  return word === null ? words : [...words, word];
}
