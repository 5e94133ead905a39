// What this worker offers. A function takes and gives JSON; it must give the same answer to the same input anywhere.
'use strict';

const crypto = require('node:crypto');

function textStatistics({ text }) {
  const words = text.split(/\s+/).filter(Boolean);
  if (words.length > 500) throw new Error(`text has ${words.length} words, at most 500 are taken`);
  const letters = words.reduce((sum, word) => sum + [...word].length, 0);
  return {
    words: words.length,
    mean_length: words.length ? letters / words.length : 0,
    sha256: crypto.createHash('sha256').update(text).digest('hex'),
  };
}

module.exports = {
  'text.statistics': {
    call: textStatistics,
    input: { type: 'object', properties: { text: { type: 'string' } }, required: ['text'] },
    output: {
      type: 'object',
      properties: { words: { type: 'integer' }, mean_length: { type: 'number' }, sha256: { type: 'string' } },
    },
  },
};
