"""A comparison as a page and as pictures: charts (altair), tables, words. Imports altair only when it draws."""
