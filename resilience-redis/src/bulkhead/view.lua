note(EXACT)
return view({})
