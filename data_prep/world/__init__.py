"""A generated audio-visual world: coloured shapes that move, sounds, spoken words, and questions about them.

`scene.py` decides what happens, `render.py` draws it, `sound.py` and `voice.py` play it, `describe.py` and
`questions.py` put it into words, `source.py` hands it to training and `write.py` writes it as media files.
"""
