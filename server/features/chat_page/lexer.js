// Tokens of Markdown, in a time that grows with the length of the text and no faster.

import { Lexer } from "./vendor/marked.esm.js";

const PIECE = 1000; // characters in which marks are paired: marked's search for partners takes the square of it

// Pairs the marks of a paragraph piece by piece, so that thousands of lone stars don't keep the browser busy.
class PieceLexer extends Lexer {
  inlineTokens(text, tokens = []) {
    for (const piece of pieces(text)) super.inlineTokens(piece, tokens);
    return tokens;
  }
}

// A piece ends before a line break, or else before a space.
function* pieces(text) {
  let start = 0;
  while (text.length - start > PIECE) {
    const piece = text.slice(start, start + PIECE);
    const end = [piece.lastIndexOf("\n"), piece.lastIndexOf(" "), PIECE].find((place) => place > 0);
    yield piece.slice(0, end);
    start += end;
  }
  yield text.slice(start);
}

// Returns the blocks of a text, by the rules of a `Marked`.
export const blocksOf = (text, parser) => new PieceLexer({ ...parser.defaults }).lex(text);
