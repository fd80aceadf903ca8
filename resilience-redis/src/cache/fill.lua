store(asked, check(asked))
return 1
