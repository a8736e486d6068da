from sd2rt.launch import script

script()
