def run(chosen):
    return []
